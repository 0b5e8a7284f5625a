"""What a source says twice is compared: tap, tree, second point, screen; and what is there twice is kept once."""

import json

import numpy as np
import pytest
from PIL import Image

from overlays.data import records
from overlays.domains.gui import trees
from overlays.domains.gui.domain import DOMAIN
from overlays.domains.gui.folds import make_folds
from overlays.domains.gui.prepare import Settings, prepare
from overlays.errors import UserError
from overlays.verify import verify

USERS = {"train_users": ("none",), "val_users": ("none",), "test_users": ("1",)}
BUTTONS = [(100 + 300 * (i % 3), 300 + 350 * (i // 3)) for i in range(15)]  # left and top, of 80 x 60 pixels


def screenshot(file, size, colour):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, colour).save(file, compress_level=1)


def phone(folder, write=lambda x, y: {"coordinate": [x, y]}, size=(1080, 2400), root=(0, 0, 1080, 2400), taps=8,
          tree=True, user=1, scale=1.0, nodes=None):
    """Raw data of one user who taps the centres of buttons that the tree of a screen of 1080 x 2400 names.

    Args:
        write: how a line of action.jsonl names the point (x, y) in pixels.
        size: of the stored screenshot.
        root: bounds in the tree.
        scale: factor on all bounds.
        nodes: of the tree, instead of the buttons.
    """
    episode = folder / "raw" / str(user) / f"2025010{user}_080000"
    lines = []
    for step in range(taps):
        left, top = BUTTONS[step]
        screenshot(episode / "screenshots" / f"{step}.png", size, 40 * user + step)
        inner = nodes or "".join(f'<node text="button {i}" clickable="true" bounds="[{a * scale:.0f},{b * scale:.0f}]'
                        f'[{(a + 80) * scale:.0f},{(b + 60) * scale:.0f}]"/>' for i, (a, b) in enumerate(BUTTONS))
        if tree:
            (episode / f"{step}.xml").write_text(
                f'<hierarchy><node bounds="[{root[0]},{root[1]}][{root[2]},{root[3]}]">{inner}</node></hierarchy>')
        lines.append({"action": "click", "instruction": f"tap it {step}", **write(left + 40, top + 30)})
    (episode / "action.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "raw"


def prepared(raw, **settings):
    """(metadata, records of the test split)."""
    output = raw.parent / "out"
    metadata = prepare(Settings(**{"raw": raw, "output": output, **USERS} | settings))
    return metadata, list(records.read(output / "test.jsonl"))


def right(rows):
    """Whether all points are the centres of the buttons, and the answers name these."""
    return [row["grid"] for row in rows] == [
        [round((left + 40) / 1.08, 2), round((top + 30) / 2.4, 2)] for left, top in BUTTONS[:len(rows)]] and all(
        f"button {i}," in row["conversations"][-1]["value"] for i, row in enumerate(rows))


# ---------------------------------------------------------------- the space of taps and trees

@pytest.mark.parametrize("size", [(540, 1200), (1080, 2400), (1620, 3600), (545, 1200)])
def test_the_root_of_the_tree_is_the_space_of_the_taps_where_it_has_the_proportions_of_the_screenshot(tmp_path, size):
    metadata, rows = prepared(phone(tmp_path, size=size))
    assert right(rows) and metadata["dropped"] == 0 and metadata["consistency"][1]["in_element"] == 1


def test_image_size_is_the_space_of_the_taps_and_the_tree_may_have_its_own(tmp_path):
    """Taps in pixels of 1080 x 2400, a tree in points of 360 x 800, a screenshot of 540 x 1200."""
    raw = phone(tmp_path, lambda x, y: {"coordinate": [x, y], "image_size": {"width": 1080, "height": 2400}},
                size=(540, 1200), root=(0, 0, 360, 800), scale=1 / 3)
    assert right(prepared(raw)[1])


def test_a_tap_without_a_tree_is_measured_as_the_others_of_its_user(tmp_path):
    raw = phone(tmp_path, size=(540, 1200))
    (raw / "1/20250101_080000/0.xml").write_text("broken")
    metadata, rows = prepared(raw)
    assert rows[0]["grid"] == [129.63, 137.5] and len(metadata["broken_view_hierarchies"]) == 1


@pytest.mark.parametrize("root", [(0, 66, 1080, 2400), (0, 0, 1080, 2274), (40, 420, 1040, 2342)])
def test_bars_and_dialogs_leave_the_space_of_the_screenshot(tmp_path, root):
    assert right(prepared(phone(tmp_path, root=root))[1])


@pytest.mark.parametrize(("size", "root"), [((540, 1200), (0, 0, 1080, 2274)), ((540, 1200), (0, 0, 1080, 2200))])
def test_a_tree_above_the_navigation_bar_on_a_smaller_screenshot_has_the_scale_of_its_width(tmp_path, size, root):
    assert right(prepared(phone(tmp_path, size=size, root=root))[1])


@pytest.mark.parametrize(("size", "root", "space"), [
    ((540, 960), (1080, 1794), (1080, 1920)), ((720, 1280), (1080, 1794), (1080, 1920)),
    ((1104, 920), (2208, 1768), (2208, 1840)), ((1200, 540), (2274, 1080), (2400, 1080)),
    ((1080, 2400), (2400, 1080), None), ((540, 1200), (1080, 1900), None)])
def test_screens_with_a_navigation_bar_at_any_side(size, root, space):
    empty = np.zeros(0, bool)
    found = trees.space_of(trees.Tree((0, 0, *root), np.zeros((0, 4), np.int32), (), empty, empty), size)
    assert found == space if space else "does not fit the screenshot" in found


@pytest.mark.parametrize("nodes", [
    '<node bounds="[0,0][1080,2400]"/><node bounds="[0,0][1080,80]"/>',
    '<node clickable="true" bounds="[0,80][120,200]"/><node class="WebView" bounds="[0,200][1080,2274]"/>'])
def test_a_tree_says_nothing_inside_a_game_or_a_web_page(tmp_path, nodes):
    metadata, rows = prepared(phone(tmp_path, nodes=nodes))
    assert len(rows) == 8 and metadata["consistency"][1]["with_tree"] == 0


def test_a_tree_or_image_size_of_other_proportions_drops_the_tap_with_the_reason(tmp_path):
    for name, settings, reason in (
        ("tree", {"root": (0, 0, 2400, 1080)},
         "view hierarchy of 2400 x 1080 does not fit the screenshot of 1080 x 2400"),
        ("row", {"write": lambda x, y: {"coordinate": [x, y], "image_size": "1920x1080"}},
         "image_size 1920 x 1080 does not fit the screenshot of 1080 x 2400"),
    ):
        raw = phone(tmp_path / name, **settings)
        with pytest.raises(UserError, match=f"no tap is left for the test split: 8 x {reason}"):
            prepared(raw)
    metadata, rows = prepared(phone(tmp_path / "told", size=(540, 1200), root=(0, 0, 1080, 2200)),
                              tap_size="1080x2400")
    assert right(rows) and metadata["broken_view_hierarchies"] == []
    with pytest.raises(UserError, match="--tap-size is screenshot, or WIDTHxHEIGHT"):
        prepared(raw, tap_size="1080")
    with pytest.raises(UserError, match="8 x --tap-size 2400 x 1080 does not fit the screenshot of 1080 x 2400"):
        prepared(raw, tap_size="2400x1080")


def test_taps_in_pixels_of_a_screenshot_that_is_smaller_than_the_tree_are_read_by_a_flag(tmp_path):
    raw = phone(tmp_path, lambda x, y: {"coordinate": [x / 2, y / 2]}, size=(540, 1200))
    with pytest.raises(UserError, match="with --tap-size screenshot they agree: give --tap-size screenshot"):
        prepared(raw)
    assert right(prepared(raw, tap_size="screenshot")[1])


# ---------------------------------------------------------------- conventions of points

@pytest.mark.parametrize(("write", "flag"), [
    (lambda x, y: {"coordinate": [y, x]}, "--point-order yx"),
    (lambda x, y: {"coordinate": [x / 1.08, y / 2.4]}, "--point-scale 1000"),
    (lambda x, y: {"coordinate": [y / 2.4, x / 1.08]}, "--point-order yx --point-scale 1000"),
    (lambda x, y: {"coordinate": [x - 40, y - 30, 80, 60]}, "--box-order ltwh"),
    (lambda x, y: {"coordinate": [x - 9, x + 9, y - 9, y + 9]}, "--box-order lrtb"),
    (lambda x, y: {"coordinate": [y - 9, x - 9, y + 9, x + 9]}, "--point-order yx"),
])
def test_points_that_contradict_the_screens_are_refused_with_the_flag_that_reads_them(tmp_path, write, flag):
    raw = phone(tmp_path, write)
    with pytest.raises(UserError, match=f"give .*{flag}"):
        prepared(raw)
    words = flag.split()
    settings = {name[2:].replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    metadata, rows = prepared(raw, **settings)
    assert right(rows) and metadata["consistency"][1]["beyond_screen"] == 0


@pytest.mark.parametrize("write", [
    lambda x, y: {"x": x, "y": y, "width": 1080, "height": 2400},
    lambda x, y: {"point": {"y": y, "x": x}}, lambda x, y: {"x": x, "y": y, "coordinate": [x, y]},
    lambda x, y: {"coordinate": {"x": x - 10, "y": y - 5, "width": 20, "height": 10}},
    lambda x, y: {"coordinate": {"left": x - 1, "top": y - 2, "right": x + 1, "bottom": y + 2}},
    lambda x, y: {"coordinate": {"top": y - 2, "left": x - 1, "w": 2, "h": 4}},
    lambda x, y: {"coordinate": [x - 1, y - 2, x + 1, y + 2]}, lambda x, y: {"click_1000": [x / 1.08, y / 2.4]},
    lambda x, y: {"coordinate": [x / 1080, y / 2400]},
])
def test_what_has_names_or_is_usual_is_read_without_a_flag(tmp_path, write):
    metadata, rows = prepared(phone(tmp_path, write))
    assert right(rows) and metadata["dropped"] == 0


def test_one_impossible_box_among_many_is_dropped_by_name(tmp_path):
    def write(x, y):
        half = -9 if (x, y) == (140, 330) else 9
        return {"coordinate": [x - half, y, x + half, y]}

    metadata, rows = prepared(phone(tmp_path, write, taps=12))
    assert len(rows) == 11
    assert metadata["drops"][0]["reason"] == "coordinate is not a box in the order ltrb: [149, 330, 131, 330]"


def test_points_that_no_convention_explains_are_refused_until_all_flags_are_given(tmp_path):
    raw = phone(tmp_path, lambda x, y: {"coordinate": [x, y + 150]})
    with pytest.raises(UserError, match="0% of 8 in an element of the tree; no known convention agrees; --tap-size"):
        prepared(raw)
    metadata, rows = prepared(raw, point_order="xy", point_scale="pixels", box_order="ltrb")
    assert len(rows) == 8 and metadata["consistency"][1]["in_element"] == 0


def test_points_on_a_grid_that_nobody_names_are_said(tmp_path):
    raw = phone(tmp_path, lambda x, y: {"coordinate": [x / 1.08, y / 2.4]}, tree=False)
    metadata, _ = prepared(raw)
    assert "lie between 0 and 1000 and are taken as pixels; 0% of 8 lie beyond the screen: give --point-scale 1000" in \
        metadata["notes"][-1]
    small = phone(tmp_path / "small", lambda x, y: {"coordinate": [x / 1.08, y / 2.4]}, size=(360, 800), tree=False)
    with pytest.raises(UserError, match="of 8 taps beyond the screen; .* give --point-scale 1000"):
        prepared(small)
    assert prepared(small, point_scale="1000")[1][0]["grid"] == [129.63, 137.5]
    few = phone(tmp_path / "few", lambda x, y: {"coordinate": [x / 1.08, y / 2.4]}, size=(360, 800), tree=False, taps=3)
    metadata, rows = prepared(few)
    assert "67% of 3 lie beyond the screen" in metadata["notes"][-1] and len(rows) == 1
    assert any("67% of 3 taps beyond the screen" in line for line in DOMAIN.summary(metadata, tmp_path))


# ---------------------------------------------------------------- second points

def desktop(folder, lines, files=1, **settings):
    """(metadata, records of the test split) of lines with `messages`, each on a screenshot of 200 x 100."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number, line in enumerate(lines):
        name = line.get("image", f"{number}.png")
        if not (folder / name).is_file():
            screenshot(folder / name, (200, 100), number)
        answer = line.pop("answer", None)
        turns = [{"role": "user", "content": f"open it {number}"}]
        turns += [{"role": "assistant", "content": f"```grounding\n{answer}\n```"}] if answer else []
        rows.append({"user_id": 1, "image": name, "messages": turns, **line})
    paths = [folder / f"{number}.jsonl" for number in range(files)]
    for path in paths:
        path.write_text("\n".join(map(json.dumps, rows)))
    metadata = prepare(Settings(**{"jsonl": paths, "output": folder / "out", **USERS} | settings))
    return metadata, list(records.read(folder / "out" / "test.jsonl"))


@pytest.mark.parametrize("scale", ["1", "100", "pixels"])
@pytest.mark.parametrize("field", ["answer", "click_1000"])
def test_answers_that_are_not_on_the_grid_are_refused_with_the_flag_that_reads_them(tmp_path, scale, field):
    size = {"1": (1, 1), "100": (100, 100), "pixels": (1920, 1080)}[scale]
    lines, expected = [], []
    for i in range(8):
        x, y = 0.1 + 0.11 * i, 0.95 - 0.1 * i
        screenshot(tmp_path / f"{i}.png", (1920, 1080), 20 * i)
        point = [round(x * size[0], 3), round(y * size[1], 3)]
        said = {"click_1000": point} if field == "click_1000" else {"answer": point}
        lines.append({"user": 1, "image": f"{i}.png", "instruction": "open it", **said})
        expected.append([1000 * x, 1000 * y])
    with pytest.raises(UserError, match=f"which is not the 0-1000 grid: give --answer-scale {scale}"):
        desktop(tmp_path, [dict(line) for line in lines])
    _, rows = desktop(tmp_path, lines, answer_scale=scale)
    np.testing.assert_allclose([row["grid"] for row in rows], expected, atol=0.6)


def test_taps_that_all_lie_in_the_upper_left_corner_are_said_or_refused(tmp_path):
    """Points of iOS on a screenshot of three times as many pixels."""
    lines = []
    for i in range(20):
        screenshot(tmp_path / f"{i}.png", (1080, 2400), 10 * i)
        lines.append({"user": 1, "image": f"{i}.png", "instruction": "open it", "messages": [],
                      "click_px": [18 * i + 9, 780 - 40 * i]})
    metadata, _ = desktop(tmp_path, lines[:8])
    assert any("upper left corner of the screen" in note and "--tap-size" in note for note in metadata["notes"])
    with pytest.raises(UserError, match="all 20 taps.*upper left corner.*give --tap-size WIDTHxHEIGHT"):
        desktop(tmp_path, lines)
    metadata, rows = desktop(tmp_path, lines, tap_size="360x800")
    assert [row["grid"] for row in rows] == [
        [round((18 * i + 9) / 0.36, 2), round((780 - 40 * i) / 0.8, 2)] for i in range(20)]
    assert desktop(tmp_path, lines, tap_size="screenshot")[0]["dropped"] == 0


def test_a_second_point_must_say_the_same(tmp_path):
    metadata, rows = desktop(tmp_path, [
        {"click_px": [100, 20], "click_1000": [500, 200], "answer": [500, 200]},
        {"click_px": [100, 20], "click_1000": [500, 700]}, {"click_px": [100, 20], "answer": [200, 200]},
        {"click_1000": [500, 200], "answer": [500, 203]}, {"click_1000": [500, 200], "answer": [900, 200]},
        {"click_px": [101, 20], "answer": [500, 200]}])
    assert [row["grid"] for row in rows] == [[500, 200], [500, 200], [505, 200]]
    assert [drop["reason"] for drop in metadata["drops"]] == [
        "click_px and click_1000 name different points: (500, 200) and (500, 700) on the 0-1000 grid",
        "click_px and answer name different points: (500, 200) and (200, 200) on the 0-1000 grid",
        "click_1000 and answer name different points: (500, 200) and (900, 200) on the 0-1000 grid"]
    assert metadata["consistency"][1]["second_point_agrees"] == 0.5
    with pytest.raises(UserError, match="at their second point; with --point-order yx they agree"):
        desktop(tmp_path / "yx", [{"click_px": [20 + i, 100], "click_1000": [500, 200 + 10 * i]} for i in range(6)])
    half = [{"click_px": [10 + 5 * i, 4 * i], "click_1000": [100 + 50 * i, 80 * i]} for i in range(1, 9)]
    with pytest.raises(UserError, match="give --tap-size 100x50"):
        desktop(tmp_path / "half", half)
    assert len(desktop(tmp_path / "half", half, tap_size="100x50")[1]) == 8


def test_a_click_beside_the_centre_of_the_answers_box_agrees_with_it(tmp_path):
    """The box is 300 x 400 grid units large; the last click lies outside of it."""
    inside = [[22 + 5 * i, 11 + 3 * i] for i in range(12)]
    metadata, rows = desktop(tmp_path / "in", [{"click_px": click, "answer": [100, 100, 400, 500]}
                                               for click in [*inside, [90, 20]]])
    assert [row["grid"] for row in rows] == [[5 * x, 10 * y] for x, y in inside]
    assert [drop["reason"] for drop in metadata["drops"]] == [
        "click_px and answer name different points: (450, 200) and (250, 300) on the 0-1000 grid"]
    corners = [{"click_px": [30 + i, 20], "click_1000": {"x": 100, "y": 100, "width": 300, "height": 400}}
               for i in range(6)]
    assert len(desktop(tmp_path / "named", corners)[1]) == 6


# ---------------------------------------------------------------- copies

def test_the_same_file_twice_gives_each_tap_once(tmp_path):
    metadata, rows = desktop(tmp_path, [{"answer": [100 * i, 5]} for i in range(1, 5)], files=2)
    assert len(rows) == 4 and metadata["counts"]["test"]["taps"] == 4
    assert [drop["reason"] for drop in metadata["drops"]] == [f"same tap as 0.jsonl, row {i}" for i in range(1, 5)]


def test_an_episode_of_two_splits_is_named_and_kept_in_the_test_split(tmp_path):
    phone(tmp_path, user=1)
    raw = phone(tmp_path, user=2, taps=3)
    for step in range(3):  # under another name, and with another tap
        source = raw / f"1/20250101_080000/screenshots/{step}.png"
        (raw / f"2/20250102_080000/screenshots/{step}.png").write_bytes(source.read_bytes())
    screenshot(raw / "3/20250103_080000/screenshots/0.png", (1080, 2400), "white")
    (raw / "3/20250103_080000/action.jsonl").write_text('{"action": "click", "coordinate": [5, 5], "instruction": "a"}')
    metadata, rows = prepared(raw, train_users=("2-3",))
    assert len(rows) == 8 and metadata["counts"]["train"]["taps"] == 1
    assert [(drop["where"], drop["reason"]) for drop in metadata["drops"]] == [
        (f"2/20250102_080000, step {step}", f"same screenshot in the test split: 1/20250101_080000, step {step}")
        for step in range(3)]
    lines = list(DOMAIN.summary(metadata, tmp_path))
    assert any("3 x same screenshot in the test split" in line for line in lines)
    assert ("note: episode 2/20250102_080000 has 3 taps on screenshots of 1/20250101_080000 in the test split, kept "
            "there") in lines


def test_copies_of_a_screenshot_are_in_one_fold(tmp_path):
    (tmp_path / "copies").mkdir()
    for number in range(4):
        for copy in "ab":
            screenshot(tmp_path / "copies" / f"{copy}{number}.png", (200, 100), number)
    _, rows = desktop(tmp_path, [{"image": f"copies/{copy}{number}.png", "answer": [100 * number, 5 + (copy == "a")]}
                                 for copy in "ab" for number in range(4)])
    folds = make_folds(rows, 4, "sample")
    assert [len(fold) for fold in folds] == [2] * 4
    assert all(len({row["grid"][0] for row in fold}) == 1 for fold in folds)


# ---------------------------------------------------------------- what has no partner

def test_a_media_folder_may_be_a_link_and_nothing_in_it_may_lead_further(tmp_path):
    screenshot(tmp_path / "disk" / "images" / "a.png", (200, 100), "red")
    screenshot(tmp_path / "disk" / "other.png", (200, 100), "blue")
    (tmp_path / "disk" / "images" / "b.png").symlink_to(tmp_path / "disk" / "other.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "disk" / "images")
    metadata, rows = desktop(tmp_path / "data", [
        {"image": f"images/{name}.png", "answer": [500, 200]} for name in ("a", "b", "../other")])
    assert len(rows) == 1
    assert [drop["reason"].split(":")[0] for drop in metadata["drops"]] == [
        "screenshot lies outside the folder of the file"] * 2


def test_reasons_are_printed_where_no_tap_is_left(tmp_path):
    with pytest.raises(UserError, match="none of the test users has a tap in .*; left out: 2 x no messages"):
        desktop(tmp_path, [{"messages": 5}, {"messages": 5}])


def test_zero_shot_needs_no_training_users(tmp_path):
    raw = phone(tmp_path)
    metadata = prepare(Settings(raw=raw, output=tmp_path / "out"))
    assert {split: row["taps"] for split, row in metadata["counts"].items()} == {"train": 0, "val": 0, "test": 8}
    assert metadata["notes"][:2] == ["there is no tap of a val user (74-83)", "there is no tap of a train user (11-73)"]
    for split in ("train", "val"):
        assert (tmp_path / "out" / f"{split}.jsonl").read_text() == ""
    rows = [record | {"prediction": "[5, 5]"} for record in records.read(tmp_path / "out" / "test.jsonl")]
    metrics = DOMAIN.score(rows, list(records.read(tmp_path / "out" / "train.jsonl")), tmp_path / "out")
    assert metrics["n"] == 8 and DOMAIN.columns(metrics) == {} and "no baseline" in DOMAIN.notes(metrics)[0]
    assert not [problems for step, problems, _ in verify(tmp_path / "out") if step == "splits" and problems]
    (tmp_path / "out" / "test.jsonl").write_text("")
    assert ["metadata.json counts test, but test.jsonl has no record"] in [found for _, found, _ in verify(
        tmp_path / "out")]
    with pytest.raises(UserError, match="none of the train users has a tap"):  # these were named
        prepared(raw, train_users=("2-3",))
    assert prepare(Settings(raw=raw, output=tmp_path / "out", test_users=("1-83",)))["users"]["train"] == []


def test_a_broken_view_hierarchy_is_counted_and_listed_with_its_reason(tmp_path):
    raw = phone(tmp_path, taps=8)
    broken = {0: "<hierarchy", 1: '<!DOCTYPE a [<!ENTITY b "c">]><hierarchy/>', 2: "<hierarchy/>"}
    for step, text in broken.items():
        (raw / f"1/20250101_080000/{step}.xml").write_text(text)
    (raw / "1/20250101_080000/3.xml").unlink()
    metadata, rows = prepared(raw)
    assert len(rows) == 8 and metadata["consistency"][1]["with_tree"] == 4
    listed = metadata["broken_view_hierarchies"]
    assert [(row["where"].rpartition(" ")[2], row["reason"][:20]) for row in listed] == [
        ("0.xml", "is not XML: unclosed"), ("1.xml", "declares entities, w"), ("2.xml", "has no window with b")]
    assert any("1 x is not XML" in line for line in DOMAIN.summary(metadata, tmp_path))
