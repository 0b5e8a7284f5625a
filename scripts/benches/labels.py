"""Mineral labels of USGS splib07 by every labeller, through the bands that the product keeps of a cube.

The library convolved to AVIRIS 1995 (s07_AV95_envi.hdr and .sli of USGS data release 10.5066/F7RR1WDJ) lies in
data/raw/splib07, or where SPLIB07 says.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from overlays.domains.cuprite.bands import good_bands, skip_reasons
from overlays.domains.cuprite.classes import CLASSES, rule_codes
from overlays.domains.cuprite.cube import open_cube
from overlays.domains.cuprite.labellers import LABELLERS
from overlays.errors import UserError
from overlays.paths import RAW

# First spectrum of each chapter of the library.
CHAPTERS = {"minerals": "Acmite NMNH133746", "mixtures": "Acid_Mine_Dr Assemb1-Fe3+",
            "coatings": "Blck_Mn_Coat_Tailngs", "liquids": "H2O-Ice GDS136 77K", "organics": "Acetylene MTG 80K",
            "artificial": "Alizarin_crimson (dk)", "vegetation": "Aspen Aspen-1 green-top"}
# First word of a mineral's name -> class. Prochlorite and thuringite are chlorites.
EIGHT = {"Alunite": "alunite", "Kaolinite": "kaolinite", "Muscovite": "muscovite", "Montmorillonite": "montmorillonite",
         "Buddingtonite": "buddingtonite", "Calcite": "calcite", "Chlorite": "chlorite", "Clinochlore": "chlorite",
         "Clinochlore_Fe": "chlorite", "Prochlorite": "chlorite", "Thuringite": "chlorite", "Epidote": "epidote"}
RELATIVES = {"Illite": "white mica", "Paragonite": "white mica", "Smectite-Illite": "white mica", "Dickite": "dickite",
             "Pyrophyllite": "pyrophyllite", "Halloysite": "kaolinite"}
LEAF = "Aspen Aspen-1 green-top"
SNR, LEAVES = (20, 50, 100), (0.2, 0.4)


class Library:
    """Spectra of splib07 at the bands that are kept of a cube of AVIRIS 1995 without a bad-band list.

    Attributes:
        names: of the spectra; spectra: (n, bands), 0 where a channel was deleted; nm, fwhm: (bands,).
        chapter: name -> numbers of its spectra that cover 2.0 to 2.44 um.
    """

    def __init__(self, header: Path):
        from spectral.io import envi

        library = envi.open(str(header))
        spectra = np.asarray(library.spectra, float)
        centres, widths = 1000 * spectra[0], 1000 * spectra[1]
        good = kept_bands(centres, widths)
        self.names, self.nm, self.fwhm = library.names, centres[good], widths[good]
        self.spectra = np.where(spectra < -1e30, 0, spectra)[:, good]
        there = (self.spectra[:, (self.nm > 2000) & (self.nm < 2440)] > 0).all(1)
        starts = [next(i for i, name in enumerate(self.names) if name.startswith(first))
                  for first in CHAPTERS.values()] + [len(self.names)]
        spectrum = [bool(name.split()) and not name.startswith("error bars") for name in self.names]
        self.chapter = {name: [i for i in range(start, stop) if spectrum[i] and there[i]]
                        for name, start, stop in zip(CHAPTERS, starts, starts[1:], strict=False)}

    def classes(self, table: dict[str, str]) -> tuple[list[int], list[str]]:
        """(numbers, classes) of the pure minerals whose names begin with a word of the table; deleted channels in the
        2 um range do not exclude a spectrum."""
        last = self.chapter["mixtures"][0]
        rows = [i for i in range(2, last) if (self.names[i].split() or [""])[0] in table]
        return rows, [table[self.names[i].split()[0]] for i in rows]


def kept_bands(centres_nm: np.ndarray, fwhm_nm: np.ndarray) -> np.ndarray:
    """Bands that the product keeps of a cube with these bands and no bad-band list, by ascending wavelength."""
    cube = np.random.default_rng(0).uniform(0.2, 0.4, (4, 4, len(centres_nm))).astype("<f4")
    with tempfile.TemporaryDirectory() as folder:
        header = Path(folder) / "cube.hdr"
        cube.tofile(header.with_suffix(".img"))
        header.write_text(
            f"ENVI\nsamples = 4\nlines = 4\nbands = {len(centres_nm)}\ndata type = 4\ninterleave = bip\n"
            f"wavelength units = Nanometers\nwavelength = {{{', '.join(map(str, centres_nm))}}}\n"
            f"fwhm = {{{', '.join(map(str, fwhm_nm))}}}\n")
        opened = open_cube(header)
        return good_bands(skip_reasons(opened), opened.wavelength_nm)


def labels(labeller, spectra: np.ndarray) -> np.ndarray:
    """Class names, "" where there is no label."""
    rule, _ = labeller(spectra)
    codes = np.where(rule >= 0, rule_codes(labeller.rules)[rule], 0)
    return np.array([CLASSES[code].name if code else "" for code in codes])


def right(found: np.ndarray, target: list[str]) -> np.ndarray:
    """Whether labels are right; white mica is right for muscovite, which is one."""
    target = np.array(target)
    return (found == target) | ((target == "muscovite") & (found == "white mica"))


def measure(library: Library, name: str, seed: int = 0) -> dict[str, float]:
    """Recall of the eight minerals, with noise and beneath leaves too, recall of their relatives, false labels."""
    labeller, noise = LABELLERS[name](library.nm, library.fwhm), np.random.default_rng(seed)
    rows, target = library.classes(EIGHT)
    clean = library.spectra[rows]
    leaf = library.spectra[next(i for i, own in enumerate(library.names) if own.startswith(LEAF))]
    found = labels(labeller, clean)
    result = {"recall": right(found, target).mean()}
    for mineral in dict.fromkeys(target):
        these = np.array(target) == mineral
        result[f"recall {mineral}"] = right(found[these], [mineral] * these.sum()).mean()
    for snr in SNR:
        noisy = clean * (1 + noise.standard_normal(clean.shape) / snr)
        result[f"recall SNR {snr}"] = right(labels(labeller, noisy), target).mean()
    for part in LEAVES:
        mixed = np.where(clean > 0, (1 - part) * clean + part * leaf, 0)
        result[f"recall {part:.0%} leaf"] = right(labels(labeller, mixed), target).mean()
    relatives, expected = library.classes(RELATIVES)
    result["recall relatives"] = right(labels(labeller, library.spectra[relatives]), expected).mean()
    for chapter, members in library.chapter.items():
        if chapter != "mixtures":  # which hold the minerals
            others = [i for i in members if i not in set(rows) | set(relatives)]
            of = "other minerals" if chapter == "minerals" else chapter
            result[f"false {of}"] = (labels(labeller, library.spectra[others]) != "").mean()
    flat = 0.3 * (1 + noise.standard_normal((2000, len(library.nm))) / 30)
    result["false noise alone, SNR 30"] = (labels(labeller, flat) != "").mean()
    return {key: float(value) for key, value in result.items()}


def header() -> Path:
    """The library's header. Raises UserError where it is not there."""
    file = Path(os.environ.get("SPLIB07", RAW / "splib07")) / "s07_AV95_envi.hdr"
    if not file.is_file():
        raise UserError(f"{file.name} and .sli of USGS splib07 are not in {file.parent}: fetch them from the data "
                        "release 10.5066/F7RR1WDJ, or name their folder in SPLIB07")
    return file


def run() -> dict[str, float]:
    """The table of docs/rasters.md, printed, and its figures by labeller."""
    library = Library(header())
    columns = {name: measure(library, name) for name in LABELLERS}
    print(f"| {len(library.classes(EIGHT)[0])} spectra of the eight minerals, {len(library.nm)} bands | "
          + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for key in next(iter(columns.values())):
        print(f"| {key} | " + " | ".join(f"{column[key]:.3f}" for column in columns.values()) + " |")
    print()
    return {f"{name} {key}": value for name, column in columns.items() for key, value in column.items()}
