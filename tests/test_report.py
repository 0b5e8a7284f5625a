"""The report is one file that loads nothing, shows what it is given and trusts no text."""

import base64
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from overlays import report

VOID = {"meta", "img", "br", "link"}


class Checker(HTMLParser):
    """Collects tags and text, and fails on tags that do not close."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def tile(tmp_path):
    path = tmp_path / "t1_clay.png"
    Image.new("RGB", (300, 300), (200, 80, 40)).save(path)
    return path


def sample(tile, **change):
    return report.Sample(**{"name": "t1", "question": "Which?", "prediction": "alunite", "truth": "kaolinite",
                            "right": False, "images": (tile,)} | change)


def test_a_page_is_well_formed_and_loads_nothing_from_outside(tmp_path, tile):
    file = tmp_path / "out" / "report.html"
    report.write(file, "Title", "Lead", [
        report.section("Figures", report.figures([report.Figure("accuracy", "of 10 rows", 0.9, 0.6)])),
        report.section("Rows", report.table(["name", "f1"], [["alunite", 0.5]], "per mineral")),
        report.section("Curve", report.picture(tile, "loss")),
        report.section("Answers", report.samples([sample(tile)])),
    ], "made by a test")
    text = file.read_text(encoding="utf-8")
    checked = Checker(text)
    sources = [attrs.get("src", "") for _, attrs in checked.tags if "src" in attrs]
    assert len(sources) == 2 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|@import|url\(", text)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in checked.tags}
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]


def test_texts_are_escaped_everywhere():
    evil = '<script>alert("1")</script>&'
    text = report.page(evil, evil, [
        report.section(evil, report.paragraph(evil)), report.table([evil], [[evil, evil]], evil),
        report.figures([report.Figure(evil, evil, 1.0)]),
        report.samples([report.Sample(evil, evil, evil, evil, True, ())])], evil)
    checked = Checker(text)
    assert "script" not in {tag for tag, _ in checked.tags}
    assert sum(word.count("<script>") for word in checked.words) == 16


def test_a_gain_is_good_where_higher_or_lower_is_better():
    def tone(model, baseline, lower):
        row = report.figures([report.Figure("x", "y", model, baseline, lower)])
        return re.search(r'class="(better|worse)"', row)

    assert tone(0.9, 0.5, False).group(1) == "better" and tone(0.9, 0.5, True).group(1) == "worse"
    assert tone(0.1, 0.5, False).group(1) == "worse" and tone(0.1, 0.5, True).group(1) == "better"
    assert tone(0.5, 0.5, False) is None and tone(None, 0.5, False) is None and tone(0.5, None, False) is None


@pytest.mark.parametrize(("value", "shown"), [(0.12345, "0.123"), (1.0, "1.000"), (7, "7"), (None, "–"), ("a", "a")])
def test_numbers(value, shown):
    assert report.number(value) == shown


def test_right_wrong_and_unjudged_answers_differ(tile):
    shown = [report.samples([sample(tile, right=right)]) for right in (True, False, None)]
    assert "✓ right" in shown[0] and "✗ wrong" in shown[1] and "verdict" not in shown[2]


def test_pictures_are_reduced_and_small_tiles_stay_sharp(tmp_path, tile):
    image = report.embedded(tile, 100)
    assert 'width="100"' in image and "small" not in image
    assert len(base64.b64decode(image.split("base64,")[1].split('"')[0])) < 5000
    Image.new("RGB", (16, 16)).save(tmp_path / "tiny.png")
    assert 'class="small"' in report.embedded(tmp_path / "tiny.png", 100)


def test_a_missing_or_broken_picture_leaves_the_page_whole(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    assert all(report.picture(path) == "" for path in (tmp_path / "none.png", tmp_path / "broken.png", None))
    assert report.section("Curve", "") == ""
    assert "broken.png" in report.samples([sample(tmp_path / "broken.png")])
