"""One pass over a cube in windows of rows, in several processes: what is valid, which mineral, composite bands."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context

import numpy as np
from tqdm import tqdm

from overlays.domains.cuprite.bands import positions
from overlays.domains.cuprite.classes import rule_codes
from overlays.domains.cuprite.cube import Cube
from overlays.domains.cuprite.indices import clay_depth, ferric_iron
from overlays.domains.cuprite.labellers import LABELLERS, al_oh_position, mica_rules
from overlays.errors import UserError

AL_OH_ZERO_NM = 2200.0  # positions are kept relative to it: float16 is then exact to 0.03 nm
WINDOW_PIXELS = 24_000  # 77 rules have fixed costs per window; about 60 MB of arrays per process


@dataclass(frozen=True)
class Scan:
    """Maps of a scene of (height, width) pixels.

    Attributes:
        valid: bool, data in every good band.
        codes: uint8 class codes, 0 where unclassified.
        rule: int16 index of the winning rule in `rules`, -1 for none.
        confidence: float16 0..1 of that rule, see the labeller; 0 for none.
        al_oh_nm: float16 position of the Al-OH absorption relative to 2200 nm, NaN where no mica won.
        iron: bool ferric iron, or None where the cube has no bands for it.
        clay: float16 depth of the 2.2 um absorption, NaN without data, or None where the cube has no bands for it.
        bands: indexes of the bands kept in `values`.
        values: (height, width, bands) float32 reflectance.
        rules: names of the rules, () without a labeller; incomplete: rule -> what it lacks on these bands.
    """

    valid: np.ndarray
    codes: np.ndarray
    rule: np.ndarray
    confidence: np.ndarray
    al_oh_nm: np.ndarray
    iron: np.ndarray | None
    clay: np.ndarray | None
    bands: list[int]
    values: np.ndarray
    rules: list[str]
    incomplete: dict[str, str]

    def pick(self, bands: list[int]) -> np.ndarray:
        """(height, width, len(bands)) float32; NaN where not valid."""
        picked = self.values[:, :, [self.bands.index(band) for band in bands]]
        picked[~self.valid] = np.nan
        return picked


def scan(cube: Cube, good: np.ndarray, keep: list[int], labeller: str | None, workers: int) -> Scan:
    """Read the cube once.

    Args:
        cube: as opened; good: indexes of its usable bands; keep: bands whose values are wanted;
        labeller: name in LABELLERS, None for no labels; workers: processes, 1 works in this one.
    """
    height, width, _ = cube.shape
    rules, incomplete = [], {}
    if labeller:
        ready = _labeller(labeller, cube.wavelength_nm[good].tobytes(), cube.fwhm_nm[good].tobytes())
        rules, incomplete = ready.rules, ready.incomplete
    # At least four windows a process, so that all end at about the same time.
    step = max(1, min(WINDOW_PIXELS, height * width // (4 * workers)) // width)
    tasks = [(cube, good, keep, labeller, row, min(step, height - row)) for row in range(0, height, step)]
    def empty(value: float, kind: type) -> np.ndarray:
        return np.full((height, width), value, kind)

    result = Scan(empty(0, bool), empty(0, np.uint8), empty(-1, np.int16), empty(0, np.float16),
                  empty(np.nan, np.float16), empty(0, bool), empty(np.nan, np.float16), list(keep),
                  np.zeros((height, width, len(keep)), np.float32), rules, incomplete)
    unknown = set()
    with tqdm(total=height, desc=f"labels ({labeller})" if labeller else "reading cube", unit="row") as bar:
        with closing(_run(tasks, workers)) as windows:
            for row, maps in windows:
                here = np.s_[row:row + len(maps["valid"])]
                for name in ("valid", "codes", "rule", "confidence", "al_oh_nm", "values"):
                    getattr(result, name)[here] = maps[name]
                for name in ("iron", "clay"):
                    if maps[name] is None:
                        unknown.add(name)
                    else:
                        getattr(result, name)[here] = maps[name]
                bar.update(len(maps["valid"]))
    if not result.valid.any():
        raise UserError(f"cube {cube.path} has no pixel with data in all its good bands: check the data ignore value "
                        "and the bad-band list")
    return replace(result, **dict.fromkeys(unknown))


def valid_pixels(spectra: np.ndarray) -> np.ndarray:
    """(...,) bool from (..., good bands) reflectance: every band has data and the pixel is not all dark."""
    return np.isfinite(spectra).all(-1) & (spectra > 0).any(-1)


@lru_cache(maxsize=2)
def _labeller(name: str, wavelength_nm: bytes, fwhm_nm: bytes):
    return LABELLERS[name](np.frombuffer(wavelength_nm), np.frombuffer(fwhm_nm))


def _window(task: tuple) -> tuple[int, dict]:
    cube, good, keep, labeller, row, rows = task
    width = cube.shape[1]
    spectra = cube.read(row, 0, rows, width, good)
    valid = valid_pixels(spectra)
    flat = spectra[valid]
    centres = cube.wavelength_nm[good]
    codes = np.zeros((rows, width), np.uint8)
    rule = np.full((rows, width), -1, np.int16)
    confidence = np.zeros((rows, width), np.float16)
    al_oh = np.full((rows, width), np.nan, np.float16)
    iron, clay = np.zeros((rows, width), bool), np.full((rows, width), np.nan, np.float16)
    if labeller and len(flat):
        ready = _labeller(labeller, centres.tobytes(), cube.fwhm_nm[good].tobytes())
        rule[valid], confidence[valid] = found, _ = ready(flat)
        codes[valid] = np.where(found >= 0, rule_codes(ready.rules)[found], 0)
        micas = np.zeros(valid.shape, bool)
        micas[valid] = (found >= 0) & mica_rules(ready.rules)[found]
        if micas.any():
            al_oh[micas] = al_oh_position(spectra[micas], centres) - AL_OH_ZERO_NM
    ferric, depth = ferric_iron(flat, centres), clay_depth(flat, centres)
    if ferric is not None:
        iron[valid] = ferric
    if depth is not None:
        clay[valid] = depth
    values = spectra[:, :, positions(good, keep)]
    return row, {"valid": valid, "codes": codes, "rule": rule, "confidence": confidence,
                 "al_oh_nm": al_oh, "values": values,
                 "iron": None if ferric is None else iron, "clay": None if depth is None else clay}


def _run(tasks: list[tuple], workers: int) -> Iterator[tuple[int, dict]]:
    if workers == 1 or len(tasks) == 1:
        yield from map(_window, tasks)
        return
    # Spawned, not forked: a fork would copy the state of whatever threads the caller runs.
    pool = ProcessPoolExecutor(min(workers, len(tasks)), get_context("spawn"), _end_with_parent, (os.getpid(),))
    try:
        yield from pool.map(_window, tasks)
    except BrokenProcessPool:
        raise UserError("a worker process ended abruptly, perhaps for want of memory: try --workers 1") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent(parent: int) -> None:
    """Workers do not outlive a parent that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
