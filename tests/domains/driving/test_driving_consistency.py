"""Files that contradict themselves are found, and the flag that reads them is named."""

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from overlays.domains.driving import consistency, egomotion
from overlays.domains.driving.egomotion import Conventions
from overlays.domains.driving.prepare import Settings, prepare
from overlays.errors import UserError
from overlays.samples.driving import KINDS, clocks, drive_of, egomotion_table
from tests.domains.driving.motions import parquet, steady, times

Q, V = ["qx", "qy", "qz", "qw"], ["vx", "vy", "vz"]


def w_first(table):
    return table.assign(**dict(zip(Q, table[["qw", "qx", "qy", "qz"]].to_numpy().T, strict=True)))


def in_car_frame(table):
    turned = Rotation.from_quat(table[Q].to_numpy().copy()).inv().apply(table[V].to_numpy().copy())
    return table.assign(**dict(zip(V, turned.T, strict=True)))


def faster(factor):
    return lambda table: table.assign(**{name: table[name] * factor for name in V})


def to_the_right(table):
    return table.assign(curvature=-table.curvature)


# What is done to a file, what it is called, and the flags that read it.
CASES = {
    "w first": (w_first, "velocity across the heading", "--quaternion-order wxyz"),
    "car frame": (in_car_frame, "velocity across the heading", "--velocity-frame car"),
    "both": (lambda table: w_first(in_car_frame(table)), "path across the heading",
             "--velocity-frame car --quaternion-order wxyz"),
    "km/h": (faster(3.6), "path and speed differ", "--speed-unit km/h"),
    "mph": (faster(1 / 0.44704), "path and speed differ", "--speed-unit mph"),
    "right": (to_the_right, "curvature against the yaw rate", "--curvature-sign right"),
}


@pytest.fixture(scope="module")
def turning():
    """A table of a car that drives 8 to 12 m/s to the left, k = 0.02."""
    table = egomotion_table(steady(10.0, 0.02), times(0, 6))
    return table


def settings_of(flags: str) -> Conventions:
    words = flags.replace("--", "").replace("-", "_").split()
    return Conventions(**dict(zip(words[::2], words[1::2], strict=True)))


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_a_right_file_agrees(number):
    motion = egomotion.read(parquet(egomotion_table(drive_of(0, number), clocks(0, number, 6)[1])))
    agreement = consistency.measure(motion)
    assert agreement.fault() is None and agreement.across_heading < 0.001
    assert agreement.path_over_speed == pytest.approx(1, abs=0.002) and agreement.path_across_heading < 0.002
    assert agreement.curvature_sign in (None, pytest.approx(1.0, abs=0.001))
    assert (agreement.position_jumps, agreement.frozen_s) == (0, 0.0)


@pytest.mark.parametrize("name", CASES)
def test_another_convention_is_a_fault_by_name_and_its_flag_reads_the_file(turning, name):
    change, reason, flags = CASES[name]
    motion = egomotion.read(parquet(change(turning)))
    assert consistency.measure(motion).fault()[0] == reason
    assert consistency.remedy(motion, Conventions()) == flags
    again = egomotion.read(parquet(change(turning)), "", settings_of(flags))
    assert consistency.measure(again).fault() is None
    right = egomotion.read(parquet(turning))
    assert again.speed == pytest.approx(right.speed) and again.curvature == pytest.approx(right.curvature)


def test_the_figures_of_a_wrong_file(turning):
    assert consistency.measure(egomotion.read(parquet(w_first(turning)))).across_heading > 0.5
    assert consistency.measure(egomotion.read(parquet(faster(3.6)(turning)))).path_over_speed == pytest.approx(
        1 / 3.6, rel=0.001)
    assert consistency.measure(egomotion.read(parquet(to_the_right(turning)))).curvature_sign == pytest.approx(-1)


def test_no_flag_is_named_where_none_reads_the_file(turning):
    metres = turning.assign(**{name: turning[name] * 1000 for name in "xyz"})
    motion = egomotion.read(parquet(metres))
    assert consistency.measure(motion).fault()[0] == "path and speed differ"
    assert consistency.remedy(motion, Conventions()) == ""


def test_jumps_of_position_and_frozen_rows_cost_their_windows(turning):
    jump = turning.copy()
    jump.loc[300:, "x"] += 4.0
    motion = egomotion.read(parquet(jump))
    assert consistency.measure(motion).position_jumps == 1 and consistency.measure(motion).fault() is None
    assert motion.problem(2_500_000, 3_500_000, 0.1)[0] == "position jump"
    assert motion.problem(0, 2_900_000, 0.1) is None
    frozen = turning.copy()
    columns = [*Q, *V, "x", "y", "z", "curvature"]
    frozen.loc[200:280, columns] = frozen.loc[200, columns].to_numpy()
    motion = egomotion.read(parquet(frozen))
    assert consistency.measure(motion).frozen_s == pytest.approx(0.8)
    assert motion.problem(2_100_000, 2_300_000, 0.1) == (
        "frozen egomotion", "0.800 s of equal rows, though the car moves, above 0.500 s")
    standing = egomotion.read(parquet(egomotion_table(steady(0.0, 0.0), times(0, 6))))
    assert standing.problem(0, 5_000_000, 0.1) is None and consistency.measure(standing).fault() is None


def test_real_recordings_agree(real_clips):
    found = {path.name.split(".")[0]: consistency.measure(egomotion.read(path))
             for path in (real_clips / "labels" / "egomotion").iterdir()}
    assert all(agreement.fault() is None for agreement in found.values())
    assert found["comma2k19-ex1-seg40"].path_over_speed == pytest.approx(1, abs=0.001)
    assert found["comma2k19-ex1-seg40"].curvature_sign > 0.9
    assert found["gopro-max-walk"].across_heading < 0.001 and found["gopro-karma-drone"].across_heading < 0.06
    walk = pd.read_parquet(next((real_clips / "labels" / "egomotion").glob("*walk*")))
    for change, name in ((w_first, "--quaternion-order wxyz"), (in_car_frame, "--velocity-frame car")):
        motion = egomotion.read(parquet(change(walk)))
        assert motion is not None and consistency.measure(motion).fault()[0] == "velocity across the heading", name


def write_logs(folder, tables):
    (folder / "labels" / "egomotion").mkdir(parents=True)
    (folder / "camera" / "camera_front_wide_120fov").mkdir(parents=True)
    for number, table in enumerate(tables):
        table.to_parquet(folder / "labels" / "egomotion" / f"c{number}.egomotion.parquet")
        pd.DataFrame({"timestamp": np.arange(90) * 33_333}).to_parquet(
            folder / "camera" / "camera_front_wide_120fov" / f"c{number}.camera_front_wide_120fov.timestamps.parquet")
    return Settings(raw=folder, output=folder / "out", workers=1, motion_only=True)


def test_a_set_of_another_convention_is_refused_with_its_flags(turning, tmp_path):
    straight = egomotion_table(steady(10.0, 0.0), times(0, 6))
    everything = [faster(3.6)(w_first(to_the_right(table))) for table in (turning, straight, straight)]
    settings = write_logs(tmp_path / "all", everything)
    flags = "--quaternion-order wxyz --curvature-sign right --speed-unit km/h"
    with pytest.raises(UserError, match="3 of 3 clips.*velocity across the heading") as error:
        prepare(settings)
    assert all(flag in str(error.value) for flag in flags.replace(" --", "\n--").split("\n"))
    read = Settings(**{**vars(settings), **vars(settings_of(flags))})
    assert prepare(read)["counts"]["windows"] == 6
    # Clips that go straight agree either way: they must not be kept while those that turn are dropped.
    mirrored = write_logs(tmp_path / "right", [to_the_right(turning), straight, straight])
    with pytest.raises(UserError, match="1 of 3 clips.*opposite signs.*--curvature-sign right: run again"):
        prepare(mirrored)


def test_a_single_odd_clip_is_listed_and_its_figures_are_kept(turning, tmp_path):
    settings = write_logs(tmp_path, [to_the_right(turning), turning, turning])
    metadata = prepare(settings)
    assert metadata["counts"]["clips_dropped"] == {"curvature against the yaw rate": 1}
    assert metadata["dropped"]["clips"][0]["detail"].endswith("it agrees with --curvature-sign right")
    assert metadata["consistency"]["c0"]["curvature_sign"] == pytest.approx(-1, abs=0.01)
    assert metadata["consistency"]["c1"]["across_heading"] == 0.0
    kept = prepare(Settings(**{**vars(settings), "contradictions": "keep"}))
    assert kept["counts"]["windows"] == 6 and list(kept["contradictions_kept"]) == ["c0"]
    from overlays.domains.driving.domain import DOMAIN

    lines = "\n".join(DOMAIN.summary(kept, tmp_path))
    assert "speed across the heading 0.000, worst 0.000 (3 clips, 0 is right)" in lines
    assert "worst -1.000" in lines and "warning: c0 contradicts itself and is kept" in lines
