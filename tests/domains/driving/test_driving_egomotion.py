"""Targets agree with the known motion; what cannot be known is refused or left out, never invented."""

import numpy as np
import pandas as pd
import pytest

from overlays.domains.driving import egomotion
from overlays.domains.driving.answers import MAX_CURVATURE
from overlays.domains.driving.skips import ClipSkip
from overlays.domains.driving.windows import cut
from overlays.samples.driving import KINDS, clocks, drive_of, egomotion_table
from tests.domains.driving.motions import parquet, steady, times


@pytest.mark.parametrize("number", range(2 * len(KINDS)))
def test_targets_agree_with_the_known_motion_at_exactly_their_times(number):
    drive, (frame_us, ego_us) = drive_of(0, number), clocks(0, number, 6)
    windows, dropped = cut(frame_us, egomotion.read(parquet(egomotion_table(drive, ego_us))))
    assert len(windows) == 5 and not dropped
    for place, window in enumerate(windows):
        assert (window.start, window.end) == (30 * place, 30 * place + 30)
        last = frame_us[window.end - 1] / 1e6
        for pairs, first in ((window.past, -29), (window.future, 1)):
            assert pairs.times == pytest.approx(np.arange(first, first + 30) / 30, abs=0.001)
            seconds = last + pairs.times
            speed, curvature = drive.speed(seconds), drive.curvature(seconds)
            assert np.abs(pairs.v - speed).max() < 0.02
            assert np.abs(pairs.k - curvature)[speed > 1].max(initial=0) < 1e-4


def test_a_shift_by_one_frame_would_be_seen():
    drive, (frame_us, ego_us) = drive_of(0, KINDS.index("start")), clocks(0, KINDS.index("start"), 6)
    windows, _ = cut(frame_us, egomotion.read(parquet(egomotion_table(drive, ego_us))))
    error = {shift: max(np.abs(w.future.v - drive.speed(frame_us[w.end - 1] / 1e6 + w.future.times + shift / 30)).max()
                        for w in windows) for shift in (-1, 0, 1)}
    assert error[0] < 0.001 and min(error[-1], error[1]) > 0.04


def test_position_and_rotation_are_those_of_the_known_motion():
    motion = egomotion.read(parquet(egomotion_table(steady(12.0, 0.03), times())))
    seconds = motion.times_us / 1e6
    angle = 12.0 * 0.03 * seconds
    assert motion.position[:, :2] == pytest.approx(np.stack([np.sin(angle), 1 - np.cos(angle)], 1) / 0.03, abs=1e-3)
    assert motion.rotation.as_euler("zyx")[:, 0] == pytest.approx(angle, abs=1e-6)


def test_speed_is_signed_along_the_heading():
    table = egomotion_table(steady(3.0, 0.0), times())
    table[["qz", "qw"]] = np.sqrt(0.5)  # the nose points left, to +y
    for sign in (1, -1):
        table[["vx", "vy"]] = [0.4, sign * 3.0]  # a little sideways slip
        assert egomotion.read(parquet(table)).speed == pytest.approx(sign * 3.0)


@pytest.mark.parametrize("curvature", [0.05, -0.0012])
def test_missing_curvature_is_fitted_from_yaw_rate_and_speed(curvature):
    table = egomotion_table(steady(9.0, curvature), times())
    given = egomotion.read(parquet(table))
    assert not given.fitted.any()
    for changed in (table.drop(columns="curvature"), table.assign(curvature=np.nan)):
        fitted = egomotion.read(parquet(changed))
        assert fitted.fitted.all()
        assert fitted.curvature == pytest.approx(np.full(len(table), curvature), rel=0.001)
    table.loc[100:120, "curvature"] = np.nan
    partly = egomotion.read(parquet(table))
    assert partly.fitted.sum() == 21
    assert partly.curvature == pytest.approx(np.full(len(table), curvature), rel=0.001)


def test_the_fit_is_least_squares_over_one_second():
    rng = np.random.default_rng(0)
    stamps, speed = times(0, 3, 50), rng.uniform(0, 8, 150)
    drive = steady(1.0, 0.2)
    table = egomotion_table(drive, stamps)
    motion = egomotion.read(parquet(table))
    fitted = egomotion.fit_curvature(stamps, motion.rotation, speed)
    near = np.abs(stamps - stamps[70]) <= 500_000
    assert fitted[70] == pytest.approx(np.sum(0.2 * speed[near]) / (np.sum(speed[near] ** 2) + 1), rel=1e-6)


def test_curvature_stays_at_zero_where_the_car_stands():
    motion = egomotion.read(parquet(egomotion_table(steady(0.0, 0.0), times()).drop(columns="curvature")))
    assert np.abs(motion.curvature).max() < 1e-9


def test_nothing_is_extrapolated():
    motion = egomotion.read(parquet(egomotion_table(steady(5.0, 0.0), times(0.0, 2.0))))
    for at in (-1, 2_000_001):
        with pytest.raises(ValueError, match="leave the egomotion"):
            motion.at(np.array([1000, at]))


def test_gaps_are_found_and_judged_by_their_length():
    stamps = times(0, 3)
    motion = egomotion.read(parquet(egomotion_table(steady(5.0, 0.0), stamps[(stamps < 1e6) | (stamps >= 1.15e6)])))
    assert motion.gaps(0.1).tolist() == [[990_000, 1_150_000]]
    assert motion.problem(100_000, 989_000, 0.1) is None
    gap = ("gap in the egomotion", "0.160 s without a row, above 0.100 s (--max-gap)")
    assert motion.problem(100_000, 1_000_000, 0.1) == motion.problem(1_000_000, 1_100_000, 0.1) == gap
    assert motion.problem(100_000, 1_200_000, 0.2) is None
    for first, last in ((-1, 500_000), (2_000_000, 3_000_000)):
        reason, detail = motion.problem(first, last, 0.1)
        assert reason == "outside the egomotion" and "runs from 0.000 to 2.990 s" in detail


def test_repeated_rows_and_numbers_that_are_none_are_left_out_and_counted():
    table = egomotion_table(steady(5.0, 0.01), times(0, 2))
    table.loc[50:69, "vx"] = np.nan
    table.loc[80, ["qx", "qy", "qz", "qw"]] = 0.0
    table = pd.concat([table[:30], table[29:]])
    motion = egomotion.read(parquet(table))
    assert motion.repairs == {"repeated": 1, "not finite": 21}
    assert motion.gaps(0.1).tolist() == [[490_000, 700_000]]


def test_a_curvature_or_speed_that_no_car_drives_counts_as_none():
    """A standing car's column may hold anything; every true answer must be one that can be read."""
    table = egomotion_table(steady(5.0, 0.02), times(0, 2))
    table.loc[40:49, "curvature"] = [50.0, -50.0] * 5
    table.loc[100, "vx"] = 200.0
    motion = egomotion.read(parquet(table))
    assert motion.bent.sum() == motion.fitted.sum() == 10 and motion.repairs == {"too fast": 1}
    assert motion.curvature == pytest.approx(np.full(199, 0.02), rel=0.05)
    shaken = egomotion_table(steady(0.0, 0.0), times(0, 2)).drop(columns="curvature")
    shaken[["qz", "qw"]] = np.stack([np.sin(30 * table.timestamp / 1e6), np.cos(30 * table.timestamp / 1e6)], 1)
    shaken["vx"], shaken["vy"] = np.cos(60 * table.timestamp / 1e6), np.sin(60 * table.timestamp / 1e6)
    assert np.abs(egomotion.read(parquet(shaken)).curvature).max() == MAX_CURVATURE


def test_numbers_of_any_column_type_are_read():
    table = egomotion_table(steady(5.0, 0.01), times(0, 2))
    odd = table.assign(vx=table.vx.astype("Float64"), curvature=None)
    odd.loc[5, "vx"] = pd.NA
    motion = egomotion.read(parquet(odd))
    assert motion.repairs == {"not finite": 1} and motion.fitted.all()


def test_what_is_no_egomotion_is_one_sentence():
    table = egomotion_table(steady(5.0, 0.0), times(0, 2))
    swapped = table.copy()
    swapped.loc[[10, 11], "timestamp"] = swapped.loc[[11, 10], "timestamp"].to_numpy()
    cases = (
        (b"no parquet", "unreadable egomotion"), (parquet(table.drop(columns=["qw", "vx"])), "lacks qw, vx"),
        (parquet(swapped), r"out of order.*row 11 \(100000 us\)"), (parquet(table[:1]), "fewer than two"),
        (parquet(table.assign(timestamp=table.timestamp / 1e6)), "whole microseconds"),
        (parquet(table.assign(timestamp=table.timestamp * 1000)), "lie 10000000 apart, as if it were nanoseconds"),
        (parquet(table.assign(timestamp=table.timestamp // 1000)), "lie 10 apart, as if it were milliseconds"),
        (parquet(table.assign(vx="fast")), "column vx holds something else than numbers"),
        (parquet(table.assign(curvature="left")), "column curvature holds something else"),
        (parquet(table.assign(vx=5e5)), r"fewer than two usable rows of 200 \(left out: 200 too fast\)"),
    )
    for content, message in cases:
        with pytest.raises(ClipSkip, match=message):
            egomotion.read(content, "x.egomotion.parquet")


def test_interpolation_agrees_with_the_reader_of_the_data_sets_makers():
    theirs = pytest.importorskip("physical_ai_av.egomotion", reason="physical_ai_av is not installed")
    drive, (frame_us, ego_us) = drive_of(0, 2), clocks(0, 2, 6)
    table = egomotion_table(drive, ego_us)
    interpolator = theirs.EgomotionState.from_egomotion_df(table).create_interpolator(ego_us)
    motion = egomotion.read(parquet(table))
    state = interpolator(motion.times_us)
    assert motion.position == pytest.approx(state.pose.translation, abs=1e-6)
    assert (motion.rotation.inv() * state.pose.rotation).magnitude() == pytest.approx(0, abs=1e-7)
    state, (speed, curvature) = interpolator(frame_us), motion.at(frame_us)
    assert curvature == pytest.approx(state.curvature[:, 0], abs=1e-9)
    assert speed == pytest.approx((state.velocity * state.pose.rotation.apply([1.0, 0.0, 0.0])).sum(1), abs=1e-3)
