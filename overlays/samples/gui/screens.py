"""Phone screens of 1080 x 2400: grids, lists, dialogs and keyboards of elements told apart by colour and shape."""

import functools
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1080, 2400
COLOURS = {
    "red": ((220, 40, 40), "红色"), "green": ((40, 160, 60), "绿色"), "blue": ((40, 80, 220), "蓝色"),
    "yellow": ((240, 200, 30), "黄色"), "purple": ((140, 50, 180), "紫色"), "black": ((30, 30, 30), "黑色"),
}
SHAPES = {"circle": "圆形", "square": "方块", "triangle": "三角", "cross": "十字"}
_CJK_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "msyh.ttc", "PingFang.ttc")
COLUMNS = (180, 420, 660, 900)  # centres by shape, mirrored in the dark theme, pixels


@dataclass(frozen=True)
class Layout:
    """How one kind of screen arranges its elements: each colour has its row, as apps and keys keep their places.

    Attributes:
        rows: centres of the rows, pixels, in the order of COLOURS.
        half: half side of an element, pixels.
    """

    rows: tuple[int, ...]
    half: int


LAYOUTS = {
    "grid": Layout((420, 760, 1100, 1440, 1780, 2120), 130),
    "list": Layout((2120, 1780, 1440, 1100, 760, 420), 115),
    "dialog": Layout((560, 790, 1020, 1250, 1480, 1710), 90),
    "keyboard": Layout((1180, 1390, 1600, 1810, 2020, 2230), 85),
}
BACKGROUNDS = {  # of the screen and of what lies on it, in the light theme and in the dark one
    "grid": (((150, 195, 240), None), ((25, 45, 90), None)),
    "list": (((200, 205, 215), (248, 248, 248)), ((75, 75, 80), (100, 105, 110))),
    "dialog": (((110, 110, 115), (248, 248, 248)), ((20, 20, 22), (100, 105, 110))),
    "keyboard": (((245, 245, 245), (165, 170, 185)), ((75, 75, 80), (50, 55, 80))),
}
DARK = 0.3  # share of the screens in the dark theme


@dataclass(frozen=True)
class Element:
    """One thing to tap. box: left, top, right, bottom in pixels."""

    colour: str
    shape: str
    box: tuple[int, int, int, int]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def name(self, language: str) -> str:
        """Its label, e.g. "red circle" or "红色圆形"."""
        if language == "zh":
            return COLOURS[self.colour][1] + SHAPES[self.shape]
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Screen:
    """A drawn screen's content. `target` may occur a second time: `twin`."""

    kind: str
    dark: bool
    elements: tuple[Element, ...]
    target: Element
    twin: Element | None


def compose(rng: random.Random, twin: bool) -> Screen:
    """Content of a screen: 4 to 6 elements of different colours, of which the target stands there twice where `twin`.

    An element's row follows from its colour and the kind of screen, its column from its shape and the theme; the twin
    stands at the opposite place. Places jitter by a few pixels.
    """
    kind, dark = rng.choice(list(LAYOUTS)), rng.random() < DARK
    layout, colours, shapes = LAYOUTS[kind], list(COLOURS), list(SHAPES)
    names = [(colour, rng.choice(shapes)) for colour in rng.sample(colours, rng.randint(4, 6))]

    def place(name: tuple[str, str], opposite: bool) -> Element:
        row, column = colours.index(name[0]), shapes.index(name[1])
        if opposite:
            row = len(layout.rows) - 1 - row
        if opposite != dark:
            column = len(COLUMNS) - 1 - column
        x, y = COLUMNS[column] + rng.randint(-25, 25), layout.rows[row] + rng.randint(-15, 15)
        return Element(*name, (x - layout.half, y - layout.half, x + layout.half, y + layout.half))

    target = place(names[0], False)
    second = place(names[0], True) if twin else None
    found = [target, *([second] if second else [])]
    for name in names[1:]:
        element = place(name, False)
        if all(_free(element, other) for other in found):
            found.append(element)
    return Screen(kind, dark, tuple(rng.sample(found, len(found))), target, second)


def _free(one: Element, other: Element) -> bool:
    """Whether two elements stand apart."""
    reach = one.box[2] - one.box[0] + 10
    return abs(one.centre[0] - other.centre[0]) > reach or abs(one.centre[1] - other.centre[1]) > reach


def draw(screen: Screen, language: str, rng: random.Random) -> Image.Image:
    """(1080 x 2400) RGB picture of a screen."""
    back, sheet = BACKGROUNDS[screen.kind][screen.dark]
    shade = rng.randint(-8, 8)
    ink = (235, 235, 235) if screen.dark else (50, 50, 50)
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(value + shade for value in back))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, WIDTH, 90), fill=(40, 40, 45))
    pen.text((40, 22), f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}", fill="white", font=_font("en"))
    if screen.kind == "dialog":
        pen.rounded_rectangle((40, 420, 1040, 1850), 60, fill=sheet)
    elif screen.kind == "keyboard":
        pen.rectangle((0, 1060, WIDTH, HEIGHT), fill=sheet)
    elif screen.kind == "list":
        for y in LAYOUTS["list"].rows:
            pen.rounded_rectangle((30, y - 155, 1050, y + 155), 30, fill=sheet)
    for element in screen.elements:
        _shape(pen, element)
        label = element.name(language if _has_cjk() else "en")
        pen.text((element.centre[0], element.box[3] + 2), label, fill=ink, font=_font(language), anchor="ma")
    return image


def _shape(pen: ImageDraw.ImageDraw, element: Element) -> None:
    left, top, right, bottom = element.box
    fill = COLOURS[element.colour][0]
    if element.shape == "circle":
        pen.ellipse(element.box, fill=fill)
    elif element.shape == "square":
        pen.rectangle(element.box, fill=fill)
    elif element.shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=fill)
    else:
        third = (right - left) / 3
        pen.rectangle((left + third, top, right - third, bottom), fill=fill)
        pen.rectangle((left, top + third, right, bottom - third), fill=fill)


@functools.lru_cache(maxsize=1)
def _cjk_file() -> str | None:
    from matplotlib.font_manager import findSystemFonts

    files = {path.rpartition("/")[2]: path for path in sorted(findSystemFonts())}
    return next((files[name] for name in _CJK_FONTS if name in files), None)


def _has_cjk() -> bool:
    """Whether this machine has a font that can draw Chinese labels; elsewhere the labels are English."""
    return _cjk_file() is not None


@functools.lru_cache(maxsize=2)
def _font(language: str):
    if language == "zh" and _has_cjk():
        return ImageFont.truetype(_cjk_file(), 34)
    return ImageFont.load_default(34)


def hierarchy(screen: Screen, language: str) -> str:
    """The screen as a UI Automator dump: one clickable node an element, with bounds and its label as text."""
    nodes = "".join(
        f'<node index="{i}" text="{element.name(language)}" class="android.widget.ImageButton" clickable="true" '
        f'bounds="[{element.box[0]},{element.box[1]}][{element.box[2]},{element.box[3]}]" />'
        for i, element in enumerate(screen.elements)
    )
    return (f"<?xml version='1.0' encoding='UTF-8' standalone='yes' ?><hierarchy rotation=\"0\"><node index=\"0\" "
            f'text="" class="android.widget.FrameLayout" clickable="false" bounds="[0,0][{WIDTH},{HEIGHT}]">{nodes}'
            "</node></hierarchy>")
