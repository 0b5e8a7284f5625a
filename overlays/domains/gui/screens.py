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
KINDS = ("grid", "list", "dialog", "keyboard")
_CJK_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "msyh.ttc", "PingFang.ttc")
# Where elements can be: centres in pixels, and their half side.
_PLACES = {
    "grid": ([(x, y) for y in (420, 840, 1260, 1680, 2100) for x in (190, 540, 890)], 145),
    "list": ([(250 if row % 2 else 830, y) for row, y in enumerate((420, 760, 1100, 1440, 1780, 2120))], 135),
    "dialog": ([(x, y) for y in (620, 1080, 1540) for x in (250, 830)], 150),
    "keyboard": ([(x, y) for y in (1260, 1640, 2020) for x in (190, 540, 890)] + [(540, 420)], 145),
}


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
    elements: tuple[Element, ...]
    target: Element
    twin: Element | None


def compose(rng: random.Random, twin: bool) -> Screen:
    """Content of a screen: 4 to 6 elements at free places, of which the target stands there twice where `twin`."""
    kind = rng.choice(KINDS)
    places, half = _PLACES[kind]
    places = rng.sample(places, len(places))
    names = rng.sample([(colour, shape) for colour in COLOURS for shape in SHAPES], 5)
    if rng.random() < 0.75:  # mostly each colour once, so that some questions need the shape and most do not
        names = list({colour: (colour, shape) for colour, shape in names}.values())

    def element(name: tuple[str, str], place: tuple[int, int]) -> Element:
        return Element(*name, (place[0] - half, place[1] - half, place[0] + half, place[1] + half))

    target = element(names[0], places[0])
    found, taken = [target], {places[0]}
    second = None
    if twin:
        # Left or right, and above or below, so that every habit decides between the two.
        apart = [place for place in places[1:] if abs(place[0] - places[0][0]) > 300
                 and abs(place[1] - places[0][1]) > 300]
        if apart:
            second = element(names[0], apart[0])
            found.append(second)
            taken.add(apart[0])
    rest = [place for place in places if place not in taken]
    found += [element(name, place) for name, place in zip(names[1:], rest, strict=False)]
    return Screen(kind, tuple(rng.sample(found, len(found))), target, second)


def draw(screen: Screen, language: str, rng: random.Random) -> Image.Image:
    """(1080 x 2400) RGB picture of a screen."""
    tone = rng.randint(225, 250)
    image = Image.new("RGB", (WIDTH, HEIGHT), (tone, tone, min(255, tone + 5)))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, WIDTH, 90), fill=(60, 60, 70))
    pen.text((40, 22), f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}", fill="white", font=_font("en"))
    if screen.kind == "dialog":
        pen.rectangle((0, 90, WIDTH, HEIGHT), fill=(170, 170, 175))
        pen.rounded_rectangle((50, 380, 1030, 1800), 60, fill="white")
    elif screen.kind == "keyboard":
        pen.rectangle((0, 1060, WIDTH, HEIGHT), fill=(205, 208, 214))
    elif screen.kind == "list":
        for y in (420, 760, 1100, 1440, 1780, 2120):
            pen.rounded_rectangle((40, y - 160, 1040, y + 160), 30, fill=(255, 255, 255))
    for element in screen.elements:
        _shape(pen, element)
        label = element.name(language if _has_cjk() else "en")
        pen.text((element.centre[0], element.box[3] + 6), label, fill=(50, 50, 50), font=_font(language), anchor="ma")
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
        return ImageFont.truetype(_cjk_file(), 40)
    return ImageFont.load_default(40)


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
