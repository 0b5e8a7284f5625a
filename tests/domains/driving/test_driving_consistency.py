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


def z_down(table):
    rig = Rotation.from_quat(table[Q].to_numpy().copy()) * Rotation.from_euler("x", 180, degrees=True)
    return table.assign(**dict(zip(Q, rig.as_quat().T, strict=True)))


def from_the_middle_of_the_earth(table):
    """Positions, velocities and rotations in axes of the earth, where z is not up."""
    turned = Rotation.from_euler("zyx", [30, 50, 20], degrees=True)
    rig = turned * Rotation.from_quat(table[Q].to_numpy().copy())
    places = turned.apply(table[["x", "y", "z"]].to_numpy().copy() + [0, 0, 6.37e6])
    return table.assign(**dict(zip(Q, rig.as_quat().T, strict=True)), **dict(zip("xyz", places.T, strict=True)),
                        **dict(zip(V, turned.apply(table[V].to_numpy().copy()).T, strict=True)))


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
    "knots": (faster(3600 / 1852), "path and speed differ", "--speed-unit knots"),
    "ft/s": (faster(1 / 0.3048), "path and speed differ", "--speed-unit ft/s"),
    "z down": (z_down, "rig upside down", "--rig-axes frd"),
    "z down, w first, of the earth": (lambda table: w_first(z_down(from_the_middle_of_the_earth(table))),
                                      "velocity across the heading", "--quaternion-order wxyz --rig-axes frd"),
    "z down, no curvature": (lambda table: z_down(table).assign(curvature=np.nan), "rig upside down",
                             "--rig-axes frd"),
    "right": (to_the_right, "curvature against the yaw rate", "--curvature-sign right"),
}


@pytest.fixture(scope="module")
def turning():
    """A table of a car that drives 10 m/s to the left, k = 0.02."""
    return egomotion_table(steady(10.0, 0.02), times(0, 6))


def settings_of(flags: str) -> Conventions:
    words = flags.replace("--", "").replace("-", "_").split()
    return Conventions(**dict(zip(words[::2], words[1::2], strict=True)))


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_a_right_file_agrees(number):
    motion = egomotion.read(parquet(egomotion_table(drive_of(0, number), clocks(0, number, 6)[1])))
    agreement = consistency.measure(motion)
    assert agreement.contradiction is None and agreement.across_heading < 0.001
    assert agreement.path_over_speed == pytest.approx(1, abs=0.005) and agreement.path_across_heading < 0.002
    assert agreement.curvature_sign in (None, pytest.approx(1.0, abs=0.001))
    assert (agreement.position_jumps, agreement.frozen_s) == (0, 0.0)


@pytest.mark.parametrize("name", CASES)
def test_another_convention_is_a_fault_by_name_and_its_flag_reads_the_file(turning, name):
    change, reason, flags = CASES[name]
    motion = egomotion.read(parquet(change(turning)))
    assert consistency.measure(motion).contradiction[0] == reason
    assert " ".join(consistency.remedy(motion, consistency.measure(motion), Conventions())) == flags
    again = egomotion.read(parquet(change(turning)), "", settings_of(flags))
    assert consistency.measure(again).contradiction is None
    right = egomotion.read(parquet(turning))
    assert again.speed == pytest.approx(right.speed) and again.curvature == pytest.approx(right.curvature, rel=0.02)


def test_the_figures_of_a_wrong_file(turning):
    assert consistency.measure(egomotion.read(parquet(w_first(turning)))).across_heading > 0.5
    assert consistency.measure(egomotion.read(parquet(faster(3.6)(turning)))).path_over_speed == pytest.approx(
        1 / 3.6, rel=0.001)
    assert consistency.measure(egomotion.read(parquet(to_the_right(turning)))).curvature_sign == pytest.approx(-1)


def test_no_flag_is_named_where_none_reads_the_file(turning):
    metres = turning.assign(**{name: turning[name] * 1000 for name in "xyz"})
    motion = egomotion.read(parquet(metres))
    assert consistency.measure(motion).contradiction[0] == "path and speed differ"
    assert consistency.remedy(motion, consistency.measure(motion), Conventions()) == ()


def test_jumps_of_position_and_frozen_rows_cost_their_windows(turning):
    jump = turning.copy()
    jump.loc[300:, "x"] += 4.0
    motion = egomotion.read(parquet(jump))
    assert consistency.measure(motion).position_jumps == 1 and consistency.measure(motion).contradiction is None
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
    assert standing.problem(0, 5_000_000, 0.1) is None and consistency.measure(standing).contradiction is None


def test_real_recordings_agree(real_clips):
    found = {path.name.split(".")[0]: consistency.measure(egomotion.read(path))
             for path in (real_clips / "labels" / "egomotion").iterdir()}
    assert all(agreement.contradiction is None for agreement in found.values())
    assert found["comma2k19-ex1-seg40"].path_over_speed == pytest.approx(1, abs=0.001)
    assert found["comma2k19-ex1-seg40"].curvature_sign > 0.9
    assert found["gopro-max-walk"].across_heading < 0.001 and found["gopro-karma-drone"].across_heading < 0.06
    walk = pd.read_parquet(next((real_clips / "labels" / "egomotion").glob("*walk*")))
    for change, name in ((w_first, "--quaternion-order wxyz"), (in_car_frame, "--velocity-frame car")):
        motion = egomotion.read(parquet(change(walk)))
        assert consistency.measure(motion).contradiction[0] == "velocity across the heading", name


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
    everything = [faster(3.6)(w_first(to_the_right(table))) for table in (turning, turning, straight)]
    settings = write_logs(tmp_path / "all", everything)
    flags = "--quaternion-order wxyz --curvature-sign right --speed-unit km/h"
    with pytest.raises(UserError, match="2 of 3 clips.*velocity across the heading") as error:
        prepare(settings)
    assert all(flag in str(error.value) for flag in flags.replace(" --", "\n--").split("\n"))
    read = Settings(**{**vars(settings), **vars(settings_of(flags))})
    assert prepare(read)["counts"]["windows"] == 6
    # Clips that go straight agree either way: they must not be kept while those that turn are dropped.
    mirrored = write_logs(tmp_path / "right", [to_the_right(turning), to_the_right(turning), straight, straight])
    with pytest.raises(UserError, match="2 of 4 clips.*opposite signs.*--curvature-sign right: run again with that, or "
                                        "with --rig-axes frd"):
        prepare(mirrored)
    # One odd clip of several says nothing of the others; the only clip of a set does.
    one = prepare(write_logs(tmp_path / "one", [to_the_right(turning), straight, straight]))
    assert one["counts"]["clips_dropped"] == {"curvature against the yaw rate": 1}
    with pytest.raises(UserError, match="1 of 1 clips.*--curvature-sign right: run again"):
        prepare(write_logs(tmp_path / "only", [to_the_right(turning)]))


def test_clips_that_bend_slightly_outvote_those_of_another_sign(turning, tmp_path):
    highway = egomotion_table(steady(30.0, 0.001), times(0, 6))
    metadata = prepare(write_logs(tmp_path, [to_the_right(turning)] * 2 + [highway] * 3))
    assert metadata["counts"]["clips_dropped"] == {"curvature against the yaw rate": 2}
    assert metadata["consistency"]["c2"]["turned_deg"] < 20


def test_a_clip_too_fast_in_metres_names_the_unit(tmp_path):
    fast = faster(3.6)(egomotion_table(steady(45.0, 0.0), times(0, 6)))
    settings = write_logs(tmp_path, [fast, fast])
    with pytest.raises(UserError, match="2 of 2 clips.*--speed-unit km/h: run again"):
        prepare(settings)
    assert prepare(Settings(**{**vars(settings), "speed_unit": "km/h"}))["counts"]["windows"] == 4
    odd = egomotion_table(steady(20.0, 0.0), times(0, 6))
    odd.loc[300, "vx"] = 200.0
    metadata = prepare(write_logs(tmp_path / "odd", [odd]))
    assert metadata["counts"]["rows_left_out"] == {"too fast": 1} and metadata["counts"]["windows"] == 2


def turned_by(degrees):
    """The rig's axes turned about z, as a camera that is not mounted along the car's."""
    def change(table):
        turned = Rotation.from_quat(table[Q].to_numpy().copy()) * Rotation.from_rotvec(
            np.outer(np.atleast_1d(degrees), [0.0, 0.0, 1.0]), degrees=True)
        return table.assign(**dict(zip(Q, turned.as_quat().T, strict=True)))
    return change


def moved_ahead(metres, yaw_rate):
    """The reference point moved ahead of the rear axle."""
    def change(table):
        lever = Rotation.from_quat(table[Q].to_numpy().copy()).apply([metres, 0.0, 0.0])
        sideways = np.cross([0.0, 0.0, yaw_rate], lever)
        return table.assign(**{name: table[name] + lever[:, axis] for axis, name in enumerate("xyz")},
                            **{name: table[name] + sideways[:, axis] for axis, name in enumerate(V)})
    return change


@pytest.mark.parametrize("drive, change", [
    ((4.0, 0.18), moved_ahead(1.5, 4.0 * 0.18)), ((4.0, 0.18), turned_by(7)), ((10.0, 0.0), turned_by(7))])
def test_mounting_and_reference_point_are_no_contradiction(drive, change):
    agreement = consistency.measure(egomotion.read(parquet(change(egomotion_table(steady(*drive), times(0, 8))))))
    assert agreement.contradiction is None
    assert agreement.across_residual < 0.001 and agreement.path_across_residual < 0.001


def test_no_reading_in_which_the_car_drives_backwards_is_named():
    motion = egomotion.read(parquet(turned_by(20)(egomotion_table(steady(30.0, 0.0), times(0, 6)))))
    assert consistency.measure(motion).contradiction[0] == "velocity across the heading"
    assert consistency.remedy(motion, consistency.measure(motion), Conventions()) == ()


def test_a_reversed_heading_and_a_curvature_of_another_size_are_faults(turning):
    for wrong, reason in ((turned_by(180)(turning), "driving backwards"),
                          (turning.assign(curvature=10 * turning.curvature), "curvature and yaw rate differ"),
                          (turning.assign(curvature=turning.curvature / 10), "curvature and yaw rate differ")):
        assert consistency.measure(egomotion.read(parquet(wrong))).contradiction[0] == reason
    against = consistency.measure(egomotion.read(parquet(turning.assign(x=-turning.x, y=-turning.y)))).contradiction
    assert against[0] == "path and speed differ" and against[1].endswith("speed says, and opposite to it")
    reversing = egomotion.read(parquet(egomotion_table(steady(-2.0, 0.15), times(0, 8))))
    assert consistency.measure(reversing).contradiction is None


def test_noise_of_the_heading_on_a_straight_road_is_no_contradiction():
    table, signs = egomotion_table(steady(30.0, 0.0), times(0, 20)), []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        noisy = turned_by(rng.normal(0, 0.5, len(table)))(table).assign(curvature=rng.normal(0, 5e-4, len(table)))
        agreement = consistency.measure(egomotion.read(parquet(noisy)))
        assert agreement.contradiction is None
        signs.append(agreement.curvature_sign)
    assert min(signs) < 0


@pytest.mark.parametrize("noise", [0.1, 0.15])
def test_noise_of_the_positions_in_slow_traffic_is_no_contradiction(noise):
    table = egomotion_table(steady(1.5, 0.0), times(0, 20, 10))
    table[["x", "y", "z"]] += np.random.default_rng(0).normal(0, noise, (len(table), 3))
    agreement = consistency.measure(egomotion.read(parquet(table)))
    assert agreement.contradiction is None and agreement.path_across_heading < 0.1


def test_rows_at_1_hz_in_a_bend_agree():
    agreement = consistency.measure(egomotion.read(parquet(egomotion_table(steady(5.0, 0.1), times(0, 20, 1)))))
    assert agreement.contradiction is None and agreement.path_across_heading < 0.001


@pytest.mark.parametrize("speed", [20.0, 30.0])
def test_positions_repeated_at_a_higher_rate_do_not_jump(speed):
    table = egomotion_table(steady(speed, 0.0), times(0, 6))
    held = (np.arange(len(table)) // 10) * 10
    table[["x", "y", "z"]] = table[["x", "y", "z"]].to_numpy()[held]
    motion = egomotion.read(parquet(table))
    assert not motion.jumps.any() and motion.problem(0, 5_900_000, 0.1) is None
    table.loc[300:, "y"] += 10.0
    assert egomotion.read(parquet(table)).jumps.sum() == 1


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


def test_a_column_that_holds_something_else_than_curvature_is_a_fault(turning):
    bends = egomotion_table(drive_of(0, KINDS.index("bends")), times(0, 6))
    for wrong in (turning.assign(curvature=0.0), bends.assign(curvature=bends.curvature.abs()),
                  turning.assign(curvature=1 / turning.curvature),
                  turning.assign(curvature=np.degrees(turning.curvature * 2.8 * 15))):
        assert consistency.measure(egomotion.read(parquet(wrong))).contradiction[0] == "curvature and yaw rate differ"


def test_velocities_that_are_all_zero_contradict_positions_that_move(turning):
    still = turning.assign(vx=0.0, vy=0.0)
    assert consistency.measure(egomotion.read(parquet(still))).contradiction[0] == "path and speed differ"
    parked = egomotion_table(steady(0.0, 0.0), times(0, 60, 10))
    parked[["x", "y"]] += np.random.default_rng(0).normal(0, 3.0, (len(parked), 2))
    assert consistency.measure(egomotion.read(parquet(parked))).contradiction is None


@pytest.mark.parametrize("first, last", [(0, 400), (200, 600), (0, 600)])
def test_positions_that_stand_in_a_tunnel_are_no_contradiction(turning, first, last):
    inside = turning.copy()
    inside.loc[first:last, ["x", "y"]] = inside.loc[first, ["x", "y"]].to_numpy(float)
    agreement = consistency.measure(egomotion.read(parquet(inside)))
    assert agreement.contradiction is None
    assert agreement.path_over_speed == (None if last - first == 600 else pytest.approx(1, abs=0.1))
