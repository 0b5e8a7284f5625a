"""Answers are read as they are said, and points survive every convention."""

import pytest

from overlays.domains.gui import coordinates
from overlays.domains.gui.answers import answer, parse_point, question
from overlays.errors import UserError
from overlays.families import FAMILIES


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("```referring\nred circle\n```\n```grounding\n[808, 238]\n```", (808, 238)),
        ("```referring\nbutton 3 of [4, 5]\n```\n```grounding\n[12, 34]\n```", (12, 34)),
        ("```grounding\n[100, 200, 300, 400]\n```", (200, 300)),  # a box means its centre
        ("```grounding\n[[100, 200], [300, 400]]\n```", (200, 300)),
        ('{"point_2d": [5, 995], "label": "ok"}', (5, 995)),
        ('{"bbox_2d": [0, 0, 10, 20]}', (5, 10)),
        ("(120.5, 33)", (120.5, 33)),
        ("click at x=17, y=42", (17, 42)),
        ("```grounding\n[7, 8]", (7, 8)),  # cut short after the point
        ("```grounding\n[-3, 8]\n```", (-3, 8)),
        ("first [1, 2], then [3, 4]", (3, 4)),
        ("<|box_start|>(100,200),(300,400)<|box_end|>", (200, 300)),  # two corners are a box
        ("(100,200),(300,400)", (200, 300)),
        ("[100,200][300,400]", (200, 300)),
        ("[1, 2], [3, 4], [5, 6]", (5, 6)),  # three points are none
        ('{"x1": 100, "y1": 200, "x2": 300, "y2": 400}', (200, 300)),
        ("<point>500 300</point>", (500, 300)),
        ("<point>500, 300</point>", (500, 300)),
        ("<box>100 200 300 400</box>", (200, 300)),
        ("（500，300）", (500, 300)),
        ("[５００，300]", (500, 300)),
        ("【500，300】", (500, 300)),
        ("[\u22125, 300]", (-5, 300)),
        ("```referring\nrow 3\n```\n```grounding\n500, 300\n```", (500, 300)),
        ('["500", "300"]', (500, 300)),
        ("[.5, .3]", (0.5, 0.3)),
        ("{500, 300}", (500, 300)),
        ("x: -5, y: .5", (-5, 0.5)),
        ("x -> 500, y -> 300", (500, 300)),
    ],
)
def test_a_point_is_found(text, point):
    assert parse_point(text) == point


@pytest.mark.parametrize("text", ["", "the red circle", "```grounding\n[808,\n```", "[1, 2, 3]", "```grounding\n\n```",
                                  f"[{'9' * 400}, 5]"])
def test_no_point_is_no_point(text):
    assert parse_point(text) is None


def test_an_answer_reads_back():
    assert parse_point(answer("red circle, upper left", (140, 75))) == (140, 75)
    assert question("tap it").startswith("<image>\nGiven a GUI image") and "0-1000" in question("tap it")
    assert "absolute" in question("tap it", "absolute")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(1080, 2400), (1024, 768), (2560, 1440)])
def test_points_survive_the_resize_within_one_grid_unit(family, size):
    seen = None
    if coordinates.convention_of(family) == coordinates.ABSOLUTE:
        seen = coordinates.resized(size, family, 28 * 28 * 16, 28 * 28 * 1280)
    for point in [(0, 0), (1, 1), (size[0] / 3, size[1] / 7), (size[0] - 1, size[1] - 1)]:
        grid = coordinates.to_grid(point, size)
        back = coordinates.from_answer(coordinates.to_answer(grid, seen), seen)
        assert max(abs(a - b) for a, b in zip(grid, back, strict=True)) <= 1


def test_points_are_pixels_in_one_family_and_on_the_grid_in_every_other():
    absolute = [name for name in FAMILIES if coordinates.convention_of(name) == coordinates.ABSOLUTE]
    assert absolute == ["qwen2_5_vl"]


def test_the_seen_size_is_that_of_the_processor(tiny_model_dir):
    """The convention's resize and the processor's patch grid are the same."""
    import numpy as np
    from PIL import Image

    from overlays.data.media import MediaOptions, apply_resolution
    from overlays.model.load import load_processor

    for family in FAMILIES:
        processor = load_processor(tiny_model_dir(family))
        apply_resolution(processor, MediaOptions(min_pixels=4096, max_pixels=300_000))
        grid = processor.image_processor(Image.fromarray(np.zeros((2400, 1080, 3), np.uint8)))["image_grid_thw"][0]
        patch = processor.image_processor.patch_size
        seen = coordinates.resized((1080, 2400), family, 4096, 300_000)
        assert seen == (int(grid[2]) * patch, int(grid[1]) * patch)


def test_an_unknown_family_is_named():
    with pytest.raises(UserError, match="llava"):
        coordinates.convention_of("llava")


def test_records_for_other_pixels_than_the_model_sees_are_one_sentence(tiny_model_dir, tmp_path):
    from PIL import Image

    from overlays.data.media import MediaOptions, apply_resolution
    from overlays.model.load import load_processor

    Image.new("RGB", (540, 1200)).save(tmp_path / "a.png")
    processor = load_processor(tiny_model_dir("qwen2_5_vl"))
    seen = coordinates.resized((540, 1200), "qwen2_5_vl", 4096, 100_000)
    rows = [{"id": "plain", "image": "a.png"}, {"id": "r1", "image": "a.png", "seen": list(seen)}]
    apply_resolution(processor, MediaOptions(min_pixels=4096, max_pixels=100_000))
    coordinates.check_seen(rows, tmp_path, processor)
    apply_resolution(processor, MediaOptions(min_pixels=4096, max_pixels=50_000))
    with pytest.raises(UserError, match=f"record r1 was prepared for an image of {seen[0]} x {seen[1]} .* 50000"):
        coordinates.check_seen(rows, tmp_path, processor)
