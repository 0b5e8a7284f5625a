"""Windows are counted as by hand, and lost only where something is missing."""

import numpy as np
import pytest

from overlays.domains.driving import egomotion
from overlays.domains.driving.skips import ClipSkip
from overlays.domains.driving.windows import cut, frame_rate
from overlays.samples.driving import egomotion_table
from tests.domains.driving.motions import parquet, steady, times


def frames(number: int, fps: float = 30.0, first_us: int = 0) -> np.ndarray:
    return first_us + np.rint(np.arange(number) * 1e6 / fps).astype(np.int64)


@pytest.fixture(scope="module")
def motion():
    return egomotion.read(parquet(egomotion_table(steady(10.0, 0.01), times(-0.5, 62.0, 50))))


@pytest.mark.parametrize(("number", "fps", "windows"), [
    (600, 30, 19), (605, 30, 19), (599, 30, 18), (60, 30, 1), (362, 30000 / 1001, 11), (315, 30000 / 1001, 9),
    (1200, 20, 59),
])
def test_a_window_takes_one_second_and_one_more(motion, number, fps, windows):
    found, dropped = cut(frames(number, fps), motion)
    assert len(found) == windows and not dropped
    assert {window.end - window.start for window in found} == {round(fps)}


@pytest.mark.parametrize("first_us", [-300_000, 0, 41_234])
def test_the_first_frame_may_be_taken_at_any_time(motion, first_us):
    found, _ = cut(frames(90, 30, first_us), motion)
    assert [window.start_us for window in found] == [first_us, first_us + 1_000_000]


def test_windows_without_egomotion_are_lost_and_no_others():
    stamps = times(0.0, 6.0)
    stamps = stamps[(stamps < 2.5e6) | (stamps > 2.7e6)]
    motion = egomotion.read(parquet(egomotion_table(steady(10.0, 0.0), stamps)))
    found, dropped = cut(frames(240), motion)
    assert [window.start for window in found] == [0, 90, 120]
    assert [drop[:2] for drop in dropped] == [
        (30, "gap in the egomotion"), (60, "gap in the egomotion"), (150, "outside the egomotion"),
        (180, "outside the egomotion")]
    assert dropped[0][2] == "0.220 s without a row, above 0.100 s (--max-gap)"
    assert [window.start for window in cut(frames(240), motion, max_gap_s=0.3)[0]] == [0, 30, 60, 90, 120]


def test_a_slow_and_uneven_log_loses_no_window():
    """Ten rows a second, a millisecond early or late: every second step is above a tenth of a second."""
    stamps = times(-0.5, 5.0, 10) + np.random.default_rng(0).integers(-1000, 1000, 55)
    motion = egomotion.read(parquet(egomotion_table(steady(10.0, 0.0), stamps)))
    assert len(cut(frames(90), motion)[0]) == 2
    assert cut(frames(90), motion, max_gap_s=0.1)[0] == []
    missing = egomotion.read(parquet(egomotion_table(steady(10.0, 0.0), np.delete(stamps, 20))))
    assert [drop[:2] for drop in cut(frames(90), missing)[1]] == [(0, "gap in the egomotion"),
                                                                  (30, "gap in the egomotion")]


def test_a_few_missing_frames_are_tolerated_up_to_a_limit(motion):
    stamps = np.delete(frames(241), [100, 101])
    found, dropped = cut(stamps, motion)
    assert not dropped and len(found) == 7
    found, dropped = cut(stamps, motion, max_frame_gap_s=0.05)
    assert [window.start for window in found] == [0, 30, 118, 148, 178]
    told = "gap in the camera timestamps", "0.100 s, above 0.050 s (--max-frame-gap)"
    assert dropped == [(60, *told), (90, *told)]
    lost = cut(np.delete(frames(241), range(100, 104)), motion)[1]
    assert [drop[1] for drop in lost] == ["gap in the camera timestamps"] * 2


def test_a_phone_that_misses_frames_keeps_its_windows_and_their_times(motion):
    stamps = frames(600)[np.random.default_rng(0).random(600) > 0.05]
    found, dropped = cut(stamps, motion)
    assert len(found) >= 18 and not dropped
    for window in found:
        assert 25 <= window.end - window.start <= 30
        assert stamps[window.end] - stamps[window.start] == pytest.approx(1e6, abs=35_000)
        assert window.future.times == pytest.approx(np.arange(1, 31) / 30, abs=1e-6)


@pytest.mark.parametrize("fps", [24, 25, 29.97, 30, 50, 60])
def test_thirty_pairs_stand_at_times_whatever_the_frame_rate(motion, fps):
    found, dropped = cut(frames(round(4 * fps), fps), motion)
    assert len(found) == 3 and not dropped
    for window in found:
        assert window.future.times == pytest.approx(np.arange(1, 31) / 30, abs=1e-6)
        assert window.past.times[-1] == 0 and window.past.times == pytest.approx(np.arange(-29, 1) / 30, abs=0.009)
        assert window.end - window.start == round(fps)


def test_pairs_stand_at_times_in_a_video_of_variable_frame_rate():
    table = egomotion_table(steady(10.0, 0.0), times(-0.5, 10.0, 50))
    table["vx"] = 5 + table.timestamp / 1e6  # 1 m/s faster every second
    steps = np.tile([20_000, 40_000, 33_000, 60_000], 60)
    stamps = np.cumsum(steps)
    (window, *_), _ = cut(stamps, egomotion.read(parquet(table)))
    last = stamps[window.end - 1] / 1e6
    assert window.future.times == pytest.approx(np.arange(1, 31) / 30, abs=1e-6)
    assert window.future.v == pytest.approx(5 + last + np.arange(1, 31) / 30, abs=1e-6)


def test_fewer_pairs_are_spread_over_the_second_and_end_with_it(motion):
    (window,), _ = cut(frames(60), motion, pairs=4)
    assert window.future.times == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=1e-5)
    assert window.past.times == pytest.approx([-0.75, -0.5, -0.25, 0.0], abs=1e-5)
    (window,), _ = cut(frames(60), motion, pairs=1)
    assert window.future.times == pytest.approx([1.0]) and window.past.times == pytest.approx([0.0])


def test_a_stride_moves_the_windows(motion):
    assert [window.start for window in cut(frames(91), motion, stride=15)[0]] == [0, 15, 30]


def test_low_speeds_are_flagged():
    for speed, low in ((0.9, True), (-0.9, True), (1.1, False), (-1.1, False)):
        motion = egomotion.read(parquet(egomotion_table(steady(speed, 0.0), times())))
        assert cut(frames(60), motion)[0][0].low_speed is low


def test_clocks_that_cannot_be_right_are_refused(motion):
    swapped = frames(90)
    swapped[[40, 41]] = swapped[[41, 40]]
    for stamps, message in ((swapped, "out of order.*frame 41"), (np.repeat(frames(45), 2), "out of order"),
                            (frames(59), "too short.*59 frames.*60"), (frames(1), "too short"),
                            (frames(90) * 1000, "lie 33333000 apart, as if it were nanoseconds"),
                            (frames(90) // 1000, "lie 33 apart, as if it were milliseconds")):
        with pytest.raises(ClipSkip, match=message):
            cut(stamps, motion)
    assert frame_rate(frames(90, 29.97)) == 30
