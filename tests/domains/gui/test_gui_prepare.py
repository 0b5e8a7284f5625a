"""Raw users -> records: counts add up, drops are listed, splits are by user."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from overlays.data import records
from overlays.domains.gui import fingertip, screens
from overlays.domains.gui.answers import parse_point
from overlays.domains.gui.prepare import Settings, parse_users, prepare, referring
from overlays.domains.gui.sample import habit, preferred, sample
from overlays.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "gui"
USERS = {"train": "11-12", "val": "74", "test": "1"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gui") / "raw"
    return sample(folder, users=[1, 11, 12, 74], episodes={"test": 2, "train": 1, "val": 1}, steps=3, workers=1)


@pytest.fixture
def own(raw, tmp_path):
    return Path(shutil.copytree(raw, tmp_path / "raw"))


def test_the_sample_goes_through_and_counts_add_up(raw, tmp_path):
    metadata = prepare(Settings(raw=raw, output=tmp_path / "out", users=USERS, screenshot_pixels=10_000))
    assert {split: row["taps"] for split, row in metadata["counts"].items()} == {"train": 6, "val": 3, "test": 6}
    assert metadata["dropped"] == 0 and metadata["other_actions"] == {"finish": 5}
    for split in USERS:
        for row, record, defects in records.check(tmp_path / "out" / f"{split}.jsonl", tmp_path / "out"):
            assert not defects, (row, defects)
            said = parse_point(record["conversations"][-1]["value"])
            assert said == tuple(round(value) for value in record["grid"])
            with Image.open(tmp_path / "out" / record["image"]) as image:
                assert image.width * image.height <= 10_200 and abs(image.width / image.height - 0.45) < 0.02


def test_a_tap_lies_in_the_element_its_user_prefers(raw):
    twins = 0
    for user in (1, 11, 12):
        for episode in fingertip.episodes(raw / str(user)):
            for step in fingertip.read_episode(episode):
                if step.action != "click":
                    continue
                found = fingertip.element_at(step.hierarchy, step.click_px)
                assert found and found.label in step.instruction
                same = [node for node in fingertip.ElementTree.parse(step.hierarchy).iter("node")
                        if node.get("text") == found.label]
                if len(same) == 2:
                    twins += 1
                    boxes = [tuple(map(int, fingertip._BOUNDS.match(node.get("bounds")).groups())) for node in same]
                    key = {"upper": lambda b: b[1], "lower": lambda b: -b[1], "left": lambda b: b[0],
                           "right": lambda b: -b[0]}[habit(user).reach]
                    assert found.box == min(boxes, key=key)
    assert twins


def test_screens_are_the_same_for_the_same_seed():
    import random

    first, second = (screens.compose(random.Random(3), True) for _ in range(2))
    assert first == second and first.twin is not None
    assert preferred(first, "upper").box[1] < preferred(first, "lower").box[1]
    assert preferred(first, "left").box[0] < preferred(first, "right").box[0]
    drawn = [screens.draw(first, "en", random.Random(1)).tobytes() for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_bad_taps_are_dropped_counted_and_listed(own, tmp_path):
    episodes = sorted((own / "1").glob("2*"))
    (episodes[0] / "screenshots" / "0.jpg").unlink()
    broken = episodes[0] / "screenshots" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:9000])
    lines = (episodes[0] / "action.jsonl").read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"coordinate": [1080, 2401]})
    (episodes[0] / "action.jsonl").write_text("\n".join(lines))
    (own / "11" / next((own / "11").glob("2*")).name / "action.jsonl").write_text("")
    metadata = prepare(Settings(raw=own, output=tmp_path / "out", users=USERS))
    reasons = [drop["reason"] for drop in metadata["drops"]]
    assert metadata["dropped"] == len(reasons) == 4
    assert any("missing" in text for text in reasons) and any("cannot be read" in text for text in reasons)
    assert any("outside the screen of 1080 x 2400" in text for text in reasons)
    assert any("holds no action" in text for text in reasons)
    assert metadata["users_without_taps"]["train"] == [11]
    assert metadata["counts"]["test"]["taps"] == 3


def test_a_split_of_users_without_data_is_one_sentence(raw, tmp_path):
    with pytest.raises(UserError, match="none of the val users has a tap .* users with taps: 1, 11, 12"):
        prepare(Settings(raw=raw, output=tmp_path / "out", users=USERS | {"val": "80"}))
    with pytest.raises(UserError, match="user 11 is in the train and in the test split"):
        prepare(Settings(raw=raw, output=tmp_path / "out", users=USERS | {"test": "1 11"}))
    with pytest.raises(UserError, match="there is no folder"):
        prepare(Settings(raw=tmp_path / "absent", output=tmp_path / "out", users=USERS))
    assert not (tmp_path / "out").exists()


def test_users_are_ranges_and_lists():
    assert parse_users("1-3 15") == parse_users(["1-3", "15"]) == parse_users("15,1,2,3") == [1, 2, 3, 15]
    for wrong in ("a", "3-1", "1-", "1..3"):
        with pytest.raises(UserError, match="ranges such as 1-10 15"):
            parse_users(wrong)


@pytest.mark.parametrize("line", [
    {"action_type": "CLICK", "x": 540, "y": 1200}, {"action": {"type": "tap", "point": {"x": 540, "y": 1200}}},
    "click(540, 1200)", {"action": "click", "coordinate": "[540, 1200]"},
    {"type": "tap", "position": [530, 1190, 550, 1210]},
])
def test_the_usual_ways_to_write_a_click_are_read(tmp_path, line):
    (tmp_path / "screenshots").mkdir()
    (tmp_path / "action.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "survey_result.json").write_text(json.dumps({"intent": "order tea"}))
    step, = fingertip.read_episode(tmp_path)
    assert step.action in fingertip.CLICKS and step.click_px == (540, 1200) and step.instruction == "order tea"


def test_a_hostile_or_broken_hierarchy_is_left_alone(tmp_path):
    for text in ("<hierarchy", '<!DOCTYPE a [<!ENTITY b "c">]><hierarchy/>'):
        (tmp_path / "0.xml").write_text(text)
        assert fingertip.element_at(tmp_path / "0.xml", (1, 1)) is None
    assert referring(None, (10, 990)) == "element at the lower left"
    assert referring("设置", (500, 500)) == "设置，中中"


def message_file(folder, roles, **extra):
    Image.new("RGB", (100, 50)).save(folder / "a.png")
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "following instruction: open it\n\nThink"}]
    content = {"system": parts if "user" not in roles else "Answer shortly.", "user": parts,
               "assistant": "```referring\nthe door\n```\n```grounding\n[500, 200]\n```"}
    rows = [{"user_id": user, "messages": [{"role": role, "content": content[role]} for role in roles], **extra}
            for user in (1, 2, 3)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Settings(jsonl=[folder / "rows.jsonl"], output=folder / "out",
                    users={"train": "1", "val": "2", "test": "3"})


def test_a_system_turn_of_text_stays_one_and_one_with_the_screenshot_is_the_question(tmp_path):
    prepare(message_file(tmp_path, ("system", "user", "assistant")))
    record, = records.read(tmp_path / "out" / "train.jsonl")
    assert [turn["from"] for turn in record["conversations"]] == ["system", "human", "gpt"]
    assert record["conversations"][0]["value"] == "Answer shortly."
    assert record["grid"] == [500, 200] and "the door" in record["conversations"][-1]["value"]
    prepare(message_file(tmp_path, ("system", "assistant")))
    record, = records.read(tmp_path / "out" / "train.jsonl")
    assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"]
    asked = record["conversations"][0]["value"]
    assert asked.startswith("<image>\n") and "open it" in asked


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is not here")
def test_real_desktop_clicks_go_through(tmp_path):
    files = [SHARED / f"user_{user}.jsonl" for user in range(1, 5)]
    metadata = prepare(Settings(jsonl=files, output=tmp_path / "out",
                                users={"train": "1-2", "val": "3", "test": "4"}))
    lines = {user: len((SHARED / f"user_{user}.jsonl").read_text().splitlines()) for user in range(1, 5)}
    kept = {split: row["taps"] for split, row in metadata["counts"].items()}
    assert kept == {"train": lines[1] + lines[2], "val": lines[3], "test": lines[4]}
    for line, record in zip(map(json.loads, files[3].read_text().splitlines()),
                            records.read(tmp_path / "out" / "test.jsonl"), strict=True):
        assert max(abs(a - b) for a, b in zip(record["grid"], line["click_1000"], strict=True)) <= 1
