"""Raw users -> records: counts add up, drops are listed, splits are by user."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from overlays.data import records
from overlays.domains.gui import coordinates, fingertip, trees
from overlays.domains.gui.answers import parse_point
from overlays.domains.gui.conventions import Convention
from overlays.domains.gui.prepare import Settings, parse_users, prepare, referring
from overlays.domains.gui.taps import CLICKS
from overlays.errors import UserError
from overlays.samples.gui import habit, preferred, screens, write

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "gui"
USERS = {"train_users": ("11-12",), "val_users": ("74",), "test_users": ("1",)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gui") / "raw"
    return write(folder, users=[1, 11, 12, 74], episodes={"test": 2, "train": 1, "val": 1}, steps=3, workers=1)


@pytest.fixture
def own(raw, tmp_path):
    return Path(shutil.copytree(raw, tmp_path / "raw"))


def test_the_sample_goes_through_and_counts_add_up(raw, tmp_path):
    metadata = prepare(Settings(raw=raw, output=tmp_path / "out", **USERS, screenshot_pixels=10_000))
    assert {split: row["taps"] for split, row in metadata["counts"].items()} == {"train": 6, "val": 3, "test": 6}
    assert metadata["dropped"] == 0 and metadata["other_actions"] == {"finish": 5}
    for split in ("train", "val", "test"):
        for row, record, defects in records.check(tmp_path / "out" / f"{split}.jsonl", tmp_path / "out"):
            assert not defects, (row, defects)
            said = parse_point(record["conversations"][-1]["value"])
            assert said == tuple(round(value) for value in record["grid"])
            with Image.open(tmp_path / "out" / record["image"]) as image:
                assert image.width * image.height <= 10_200 and abs(image.width / image.height - 0.45) < 0.02


def test_a_tap_lies_in_the_element_its_user_prefers(raw):
    twins = 0
    for user in (1, 11, 12):
        for episode in fingertip.episodes(raw / str(user))[0]:
            for step in fingertip.read_episode(episode):
                if step.action != "click":
                    continue
                tree = trees.read(step.hierarchy)
                label, box = tree.labelled_at(Convention().centre(step.points[0]))
                assert label in step.instruction
                same = [tuple(found) for found, name in zip(tree.boxes.tolist(), tree.labels, strict=True)
                        if name == label]
                if len(same) == 2:
                    twins += 1
                    key = {"upper": lambda b: b[1], "lower": lambda b: -b[1], "left": lambda b: b[0],
                           "right": lambda b: -b[0]}[habit(user).reach]
                    assert box == min(same, key=key)
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
    metadata = prepare(Settings(raw=own, output=tmp_path / "out", **USERS))
    reasons = [drop["reason"] for drop in metadata["drops"]]
    assert metadata["dropped"] == len(reasons) == 4
    assert any("missing" in text for text in reasons) and any("cannot be read" in text for text in reasons)
    assert any("outside the screen of 1080 x 2400" in text for text in reasons)
    assert any("holds no action" in text for text in reasons)
    assert metadata["users_without_taps"]["train"] == [11]
    assert metadata["counts"]["test"]["taps"] == 3


def test_a_split_of_users_without_data_is_one_sentence(raw, tmp_path):
    with pytest.raises(UserError, match="none of the val users has a tap .* users with taps: 1, 11, 12"):
        prepare(Settings(raw=raw, output=tmp_path / "out", **USERS | {"val_users": ("80",)}))
    with pytest.raises(UserError, match="user 11 is in the train and in the test split"):
        prepare(Settings(raw=raw, output=tmp_path / "out", **USERS | {"test_users": ("1 11",)}))
    with pytest.raises(UserError, match="there is no folder"):
        prepare(Settings(raw=tmp_path / "absent", output=tmp_path / "out", **USERS))
    assert not (tmp_path / "out").exists()


def test_users_are_ranges_and_lists():
    assert parse_users("1-3 15") == parse_users(["1-3", "15"]) == parse_users("15,1,2,3") == [1, 2, 3, 15]
    for wrong in ("a", "3-1", "1-", "1..3"):
        with pytest.raises(UserError, match="ranges such as 1-10 15"):
            parse_users(wrong)


@pytest.mark.parametrize("line", [
    {"action_type": "CLICK", "x": 540, "y": 1200}, {"action": {"type": "tap", "point": {"x": 540, "y": 1200}}},
    "click(540, 1200)", {"action": "click", "coordinate": "[540, 1200]"},
    {"type": "tap", "position": [530, 1190, 550, 1210]}, {"action": "CLICK(540,1200)"},
    {"action": "click(start_box='(540,1200)')"}, "click(x=540, y=1200)", {"action": "left_click", "xy": [[540, 1200]]},
    {"action": "点击", "coordinate": [540, 1200]},
])
def test_the_usual_ways_to_write_a_click_are_read(tmp_path, line):
    (tmp_path / "screenshots").mkdir()
    (tmp_path / "action.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "survey_result.json").write_text(json.dumps({"intent": "order tea"}))
    step, = fingertip.read_episode(tmp_path)
    assert step.action in CLICKS and step.instruction == "order tea"
    assert [Convention().centre(point) for point in step.points] == [(540, 1200)]


def test_lines_and_folders_that_are_not_read_are_listed(own, tmp_path):
    episode = sorted((own / "1").glob("2*"))[0]
    click = {"action": "click", "coordinate": [10, 10], "screenshot": "0.jpg"}
    lines = [json.dumps(click | {"instruction": "打开\u2028设置"}, ensure_ascii=False), "{broken", '"finish"',
             json.dumps(click | {"screenshot": "a\0.jpg"}), json.dumps(click | {"screenshot": "a" * 400 + ".jpg"}),
             json.dumps(click | {"coordinate": [0.5, 0.5]})]
    (episode / "action.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (own / "1" / "2025-01-01").mkdir()
    (own / "notes").mkdir()
    (own / "11").rename(own / "011")
    (own / "12").rename(own / "user_12")
    metadata = prepare(Settings(raw=own, output=tmp_path / "out", **USERS))
    reasons = {(drop["where"], drop["reason"].split(":")[0]) for drop in metadata["drops"]}
    assert reasons == {
        ("notes", "folder is not a user, or one that is there before"),
        ("1/2025-01-01", "folder is not an episode (YYYYMMDD_HHMMSS)"),
        (f"1/{episode.name}", "line 2 of action.jsonl is not JSON"),
        (f"1/{episode.name}, step 3", "screenshot has a name that no file can have"),
        (f"1/{episode.name}, step 4", "screenshot is missing"),
        (f"1/{episode.name}, step 5", "click could be a share of the screen, but others of its source are pixels"),
    }
    assert metadata["counts"]["train"]["users"] == 2 and metadata["counts"]["test"]["taps"] == 1 + 3
    assert "打开\u2028设置" in next(records.read(tmp_path / "out" / "test.jsonl"))["conversations"][0]["value"]


def test_a_hierarchy_in_another_encoding_is_read(tmp_path):
    text = "<?xml version='1.0' encoding='GBK'?><hierarchy><node text='设置' bounds='[0,0][9,9]'/></hierarchy>"
    (tmp_path / "0.xml").write_bytes(text.encode("gbk"))
    assert trees.read(tmp_path / "0.xml").labelled_at((1, 1)) == ("设置", (0, 0, 9, 9))


def test_a_hostile_or_broken_hierarchy_is_left_alone(tmp_path):
    for text in ("<hierarchy", '<!DOCTYPE a [<!ENTITY b "c">]><hierarchy/>'):
        (tmp_path / "0.xml").write_text(text)
        assert isinstance(trees.read(tmp_path / "0.xml"), str)
    assert trees.read(tmp_path / "1.xml") is None
    assert referring(None, (10, 990)) == "element at the lower left"
    assert referring("设置", (500, 500)) == "设置，中中"


def picture(folder, name, size=(100, 50)):
    """A picture that no other name has; its name."""
    Image.new("RGB", size, tuple(name.encode()[-7:-4].rjust(3))).save(folder / name)
    return name


def message_file(folder, roles, **extra):
    rows = []
    for user in (1, 2, 3):
        parts = [{"type": "image", "image": picture(folder, f"{user}.png")},
                 {"type": "text", "text": "following instruction: open it\n\nThink"}]
        content = {"system": parts if "user" not in roles else "Answer shortly.", "user": parts,
                   "assistant": "```referring\nthe door\n```\n```grounding\n[500, 200]\n```"}
        messages = [{"role": role, "content": content[role]} for role in roles]
        rows.append({"user_id": user, "messages": messages, **extra})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Settings(jsonl=[folder / "rows.jsonl"], output=folder / "out",
                    train_users=("1",), val_users=("2",), test_users=("3",))


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


ANSWER = "```referring\nthe door\n```\n```grounding\n[500, 200]\n```"


QUESTION = [{"role": "user", "content": "open it"}]


def tap(user=1, image="a.png", text="open it", **extra):
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": ANSWER}]
    return {"user_id": user, "image": image, "messages": messages, **extra}


def prepared(folder, lines, **settings):
    """(metadata, train records) of lines of user 1, with a tap each of users 2 and 3, on screenshots of 100 x 50."""
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png", "user2.png", "user3.png"):
        if not (folder / name).exists():
            picture(folder, name)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, [
        *lines, tap(2, "user2.png"), tap(3, "user3.png")])))
    metadata = prepare(Settings(**{"jsonl": [folder / "rows.jsonl"], "output": folder / "out",
                                   "train_users": ("1",), "val_users": ("2",), "test_users": ("3",)} | settings))
    return metadata, list(records.read(folder / "out" / "train.jsonl"))


@pytest.mark.parametrize(("extra", "reason"), [
    ({"click_px": ["abc", "5"]}, "click_px is neither two nor four numbers"),
    ({"click_px": [None, 5]}, "click_px is neither two nor four numbers"),
    ({"click_px": [200, 5]}, "click outside the screen of 100 x 50: (200, 5)"),
    ({"image": "data:image/png;base64," + "A" * 5000}, "screenshot is an address and no file: data:image/png;base64,A"),
    ({"image": "a" * 300 + ".png"}, "screenshot has a name that no file can have: aaa"),
    ({"image": "b\0.png"}, "screenshot has a name that no file can have: b\\x00.png"),
    ({"image": "../a.png"}, "screenshot lies outside the folder of the file"),
    ({"image": "16bit.png"}, "screenshot cannot be read: image has more than 8 bits"),
    ({"image": "narrow.png"}, "screenshot is too narrow: 3 x 900"),
    ({"user": "²"}, "no user number"),
    ({"text": "  "}, "no instruction"),
    ({"text": "<image>"}, "no instruction"),
])
def test_a_line_that_cannot_be_used_is_listed_in_few_words(tmp_path, extra, reason):
    Image.new("I;16", (100, 50)).save(tmp_path / "16bit.png")
    Image.new("RGB", (3, 900)).save(tmp_path / "narrow.png")
    metadata, rows = prepared(tmp_path, [tap(), tap(**extra)])
    assert [drop["where"] for drop in metadata["drops"]] == ["rows.jsonl, row 2"] and len(rows) == 1
    assert metadata["drops"][0]["reason"].startswith(reason) and len(metadata["drops"][0]["reason"]) < 200


def test_the_usual_ways_to_write_a_line_are_read(tmp_path):
    parts = [{"type": "image_url", "image_url": {"url": "b.png"}}, {"type": "text", "text": "open it"}]
    turns = [{"role": "user", "content": "open it"}, {"role": "assistant", "content": "let me look"},
             {"role": "tool", "content": "{}"}, {"role": "assistant", "content": ANSWER},
             {"role": "user", "content": "thanks"}]
    metadata, rows = prepared(tmp_path, [
        tap(image=f"file://{tmp_path}/a.png"), tap(text=parts, image=None), tap(image="c.png", messages=turns),
        tap(image="d.png", click_px=[40, 8, 60, 12], image_size="100x50"),
        tap(image="e.png", instruction=" ", text="look at <image> open it"),
        tap(action="scroll", click_px=[1, 1]), tap(action={"type": "type"}), tap(user=9, action="Tap")])
    assert metadata["drops"] == [] and metadata["other_actions"] == {"scroll": 1, "type": 1}
    assert metadata["other_roles"] == {"tool": 1} and metadata["users_in_no_split"] == {9: 1}
    assert [row["grid"] for row in rows] == [[500, 200]] * 5
    assert all("open it\n\nThink" in row["conversations"][0]["value"] for row in rows)


def test_words_that_stand_for_media_are_taken_out(tmp_path):
    line = tap(text="tap <image>", messages=[
        {"role": "system", "content": "You see <image>"}, {"role": "user", "content": "tap <video> it"},
        {"role": "assistant", "content": ANSWER.replace("door", "<image>door")}])
    metadata, rows = prepared(tmp_path, [line])
    assert metadata["dropped"] == 0 and records.check_record(rows[0], tmp_path / "out") == []
    assert [turn["value"].count("<") for turn in rows[0]["conversations"]] == [0, 1, 0]


def test_screenshots_of_one_name_stay_apart_and_nothing_leaves_the_output(tmp_path):
    for place, colour in (("one", "red"), ("two", "blue")):
        (tmp_path / place).mkdir()
        Image.new("RGB", (100, 50), colour).save(tmp_path / place / "s.png")
        (tmp_path / place / "s.jsonl").write_text(json.dumps(tap(image="s.png", session="../../../evil", text="go")))
    _, rows = prepared(tmp_path, [tap(session="x" * 300), tap(user="01", image="one/s.png"), tap(image="two/s.png")],
                       jsonl=[tmp_path / "rows.jsonl", tmp_path / "one" / "s.jsonl", tmp_path / "two" / "s.jsonl"])
    assert len({row["id"] for row in rows}) == len(rows) == 5
    colours = []
    for row in rows[1:]:
        with Image.open(tmp_path / "out" / row["image"]) as image:
            colours.append(image.getpixel((0, 0)))
    assert colours == [(255, 0, 0), (0, 0, 255)] * 2
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert {row["image"] for row in rows} <= files and not (tmp_path / "evil").exists()
    assert not [path for path in tmp_path.rglob("*evil*")]


def test_points_are_of_the_upright_screenshot_and_of_the_image_as_it_is_stored(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (2400, 1080)).save(tmp_path / "a.png")
    Image.new("RGB", (2400, 1080)).save(tmp_path / "turned.jpg", exif=turned)
    for pixels, stored in ((None, (1080, 2400)), (20_000, (95, 211))):
        _, rows = prepared(tmp_path, [tap(image="turned.jpg", click_px=[540, 2340], messages=QUESTION)],
                           family="qwen2_5_vl", screenshot_pixels=pixels)
        with Image.open(tmp_path / "out" / rows[0]["image"]) as image:
            assert ImageOps.exif_transpose(image).size == stored
        seen = coordinates.resized(stored, "qwen2_5_vl", 28 * 28 * 16, 28 * 28 * 1280)
        assert rows[0]["screen"] == [1080, 2400] and rows[0]["grid"] == [500, 975] and rows[0]["seen"] == list(seen)
        said = parse_point(rows[0]["conversations"][-1]["value"])
        assert said == tuple(round(value) for value in (seen[0] * 0.5, seen[1] * 0.975))


def test_shares_of_the_screen_are_taken_as_such_and_told(tmp_path):
    metadata, rows = prepared(tmp_path, [tap(click_px=[0.5, 0.2]), tap(click_px=[1, 0], messages=QUESTION)])
    assert metadata["notes"] == [f"the points of {tmp_path / 'rows.jsonl'} lie between 0 and 1: taken as shares of the "
                                 "screen, not as pixels, the first of two as x (--point-order yx: y)"]
    assert [row["grid"] for row in rows] == [[500, 200], [1000, 0]]


def test_limits_that_cannot_be_are_one_sentence(tmp_path):
    for wrong in ({"min_pixels": 10, "max_pixels": 5}, {"screenshot_pixels": 0}):
        with pytest.raises(UserError, match=list(wrong)[0].replace("_", "-")):
            prepared(tmp_path, [tap()], **wrong)


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is not here")
def test_real_desktop_clicks_go_through(tmp_path):
    files = [SHARED / f"user_{user}.jsonl" for user in range(1, 5)]
    metadata = prepare(Settings(jsonl=files, output=tmp_path / "out",
                                train_users=("1-2",), val_users=("3",), test_users=("4",)))
    lines = {user: len((SHARED / f"user_{user}.jsonl").read_text().splitlines()) for user in range(1, 5)}
    kept = {split: row["taps"] for split, row in metadata["counts"].items()}
    assert kept == {"train": lines[1] + lines[2], "val": lines[3], "test": lines[4]}
    for line, record in zip(map(json.loads, files[3].read_text().splitlines()),
                            records.read(tmp_path / "out" / "test.jsonl"), strict=True):
        assert max(abs(a - b) for a, b in zip(record["grid"], line["click_1000"], strict=True)) <= 1
