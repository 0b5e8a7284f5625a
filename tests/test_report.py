"""The report is one file that loads nothing, shows what it is given and trusts no text."""

import base64
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from overlays import report
from overlays.report import Cards, Cell, Paragraph, Picture, Section, Table

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
    return report.Sample(**{"name": "t1", "question": "Which?", "prediction": "alunite", "target": "kaolinite",
                            "right": False, "images": (tile,)} | change)


def test_a_page_is_well_formed_and_loads_nothing_from_outside(tmp_path, tile):
    file = tmp_path / "out" / "report.html"
    report.write(file, "Title", "Lead", [
        Section("Metrics", [Table(["metric", "model"], [[Cell("accuracy", note="10 rows"), Cell("0.9", "better")]])]),
        Section("Rows", [Table(["name", "f1"], [["alunite", 0.5]], "per mineral")]),
        Section("Curve", [Picture(tile, "loss")]), Section("Answers", [Cards([sample(tile)])]),
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
        Section(evil, [Paragraph(evil), Table([evil], [[evil, evil], [Cell(evil, note=evil)]], evil),
                       Cards([report.Sample(evil, evil, evil, evil, True, ())])])], evil)
    checked = Checker(text)
    assert "script" not in {tag for tag, _ in checked.tags}
    assert sum(word.count("<script>") for word in checked.words) == 16


@pytest.mark.parametrize(("value", "shown"), [(0.12345, "0.123"), (1.0, "1.000"), (7, "7"), (None, "–"), ("a", "a")])
def test_numbers(value, shown):
    assert report.number(value) == shown


def test_right_wrong_and_unjudged_answers_differ(tile):
    shown = [report.page("t", "l", [Section("", [Cards([sample(tile, right=right)])])]).split("</style>")[1]
             for right in (True, False, None)]
    assert "✓ right" in shown[0] and "✗ wrong" in shown[1] and "verdict" not in shown[2]


def test_pictures_are_reduced_and_small_tiles_stay_sharp(tmp_path, tile):
    image = report.embedded(tile, 100)
    assert 'width="100"' in image and "small" not in image
    assert len(base64.b64decode(image.split("base64,")[1].split('"')[0])) < 5000
    Image.new("RGB", (16, 16)).save(tmp_path / "tiny.png")
    assert 'class="small"' in report.embedded(tmp_path / "tiny.png", 100)


def test_a_missing_or_broken_picture_leaves_the_page_whole(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    lost = [Section("Curve", [Picture(path)]) for path in (tmp_path / "none.png", tmp_path / "broken.png", None)]
    text = report.page("t", "l", [*lost, Section("Answers", [Cards([sample(tmp_path / "broken.png")])])])
    assert "Curve" not in text and text.count("<section>") == 1 and "broken.png" in text
