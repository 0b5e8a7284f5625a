"""Whether the figures of the nearest labeller hold where its thresholds are not tuned on what is measured.

The samples of splib07 are divided at random; smoothing, cosine and depth are tuned on one half and measured on the
other. The library lies where `labels` has it.
"""

from itertools import product

import numpy as np

from benches.labels import EIGHT, RELATIVES, Library, header, labels, right
from overlays.domains.cuprite import labellers

SPLITS, SNR = 20, 50
SMOOTHING_NM, DEPTHS, COSINES = (15.0, 20.0, 25.0, 30.0, 35.0), (0.01, 0.015, 0.02, 0.025, 0.03), np.arange(
    0.93, 0.985, 0.0025)
LIMITS = {"minerals": 0.13, "artificial": 0.05, "vegetation": 0.03}  # of false labels, while tuning


def outcomes(library: Library) -> tuple[np.ndarray, dict[str, np.ndarray], dict[tuple, dict[str, np.ndarray]]]:
    """(samples by spectrum of the eight minerals, samples of each chapter's others, setting -> for each kind of
    spectra the cosine where a label is right or, of others, where there is any; 0 elsewhere)."""
    rows, target = library.classes(EIGHT)
    taken = {*rows, *library.classes(RELATIVES)[0]}
    others = {name: [i for i in library.chapter[name] if i not in taken] for name in LIMITS}
    clean = library.spectra[rows]
    noisy = clean * (1 + np.random.default_rng(0).standard_normal(clean.shape) / SNR)
    usual = labellers.SMOOTHING_NM, labellers.LEAST_DEPTH, labellers.LEAST_COSINE
    table: dict[tuple, dict[str, np.ndarray]] = {}
    try:
        labellers.LEAST_COSINE = 0.0
        for setting in product(SMOOTHING_NM, DEPTHS):
            labellers.SMOOTHING_NM, labellers.LEAST_DEPTH = setting
            labeller = labellers.NearestLabeller(library.nm, library.fwhm)
            table[setting] = {name: np.where(right(labels(labeller, spectra), target), labeller(spectra)[1], 0)
                              for name, spectra in (("recall", clean), (f"recall SNR {SNR}", noisy))}
            for name, members in others.items():
                spectra = library.spectra[members]
                table[setting][name] = np.where(labels(labeller, spectra) != "", labeller(spectra)[1], 0)
    finally:
        labellers.SMOOTHING_NM, labellers.LEAST_DEPTH, labellers.LEAST_COSINE = usual

    def samples(members) -> np.ndarray:
        return np.array([" ".join(library.names[i].split()[:2]) for i in members])

    return samples(rows), {name: samples(members) for name, members in others.items()}, table


def run() -> dict[str, float]:
    """Mean figures of the tuned halves and of the others."""
    minerals, others, table = outcomes(Library(header()))
    kinds = {name: others.get(name, minerals) for name in next(iter(table.values()))}
    names = np.unique(np.concatenate(list(kinds.values())))
    found: dict[str, list[dict]] = {"tuned half": [], "other half": []}
    for seed in range(SPLITS):
        half = np.random.default_rng(seed).permutation(names)[:len(names) // 2]
        inside = {name: np.isin(samples, half) for name, samples in kinds.items()}

        def figures(setting: tuple, cosine: float, inside: dict, tuned: bool) -> dict[str, float]:
            return {name: float((table[setting][name] >= cosine)[inside[name] == tuned].mean()) for name in kinds}

        def worth(choice: tuple, inside: dict = inside) -> float:
            own = figures(*choice, inside, True)
            fits = all(own[name] < limit for name, limit in LIMITS.items())
            return sum(value for name, value in own.items() if name not in LIMITS) if fits else -1.0

        best = max(product(table, COSINES), key=worth)
        found["tuned half"].append(figures(*best, inside, True))
        found["other half"].append(figures(*best, inside, False))
    return {f"{half} {'false ' if name in LIMITS else ''}{name}": float(np.mean([row[name] for row in rows]))
            for half, rows in found.items() for name in kinds}
