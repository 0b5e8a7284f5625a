"""What is asked about a tile, what the right answer is, and how an answer is read back.

Questions vary in wording; answers have one fixed form per task and language, so that a parser beside each can read
them exactly. Parsers are more tolerant than the forms: a large model may phrase freely.
"""

import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from overlays.domains.cuprite.classes import CLASSES

TASKS = ("alteration", "minerals", "analysis")
MINERALS = tuple(c.name for c in CLASSES if c.code)
NAME_ZH = {c.name: c.name_zh for c in CLASSES if c.code}
COPPER = frozenset(c.name for c in CLASSES if c.copper)
POTENTIALS = ("low", "moderate", "high")
HIGH_POTENTIAL = 0.50  # cover from which the inferred potential is "high"; a convention of this data set

ZONES = ("advanced argillic", "argillic", "phyllic", "propylitic", "none")
ZONE_ZH = dict(zip(ZONES, ("高级泥化", "泥化", "绢英岩化", "青磐岩化", "无"), strict=True))
POTENTIAL_ZH = dict(zip(POTENTIALS, ("低", "中等", "高"), strict=True))

COMPOSITES = {
    "clay": ("clay composite (2200/2100/1650 nm)", "黏土合成图（2200/2100/1650 nm）"),
    "iron": ("iron oxide composite (860/660/480 nm)", "铁氧化物合成图（860/660/480 nm）"),
    "natural": ("natural colour (660/550/470 nm)", "自然色（660/550/470 nm）"),
    "swir": ("short-wave infrared composite (2350/2200/2100 nm)", "短波红外合成图（2350/2200/2100 nm）"),
}

QUESTIONS = {
    ("alteration", "en"): (
        "Is this tile an alteration zone (alteration minerals on more than {threshold} % of it)? Give the share.",
        "Do alteration minerals cover more than {threshold} % of this tile, and how much do they cover?",
        "Say yes or no: is this ground hydrothermally altered over more than {threshold} %? Estimate the cover.",
        "Does hydrothermal alteration exceed {threshold} % of the area shown? State the percentage.",
        "Would you map this tile as altered, at a limit of {threshold} % cover? Answer yes or no with the share.",
        "Check this tile for alteration: are more than {threshold} % of its pixels alteration minerals?",
    ),
    ("alteration", "zh"): (
        "该图块是蚀变带吗（蚀变矿物覆盖超过 {threshold} %）？请给出比例。",
        "蚀变矿物的覆盖是否超过该图块的 {threshold} %？约占多少？",
        "请回答是或否：此处热液蚀变的面积是否超过 {threshold} %？并估计覆盖比例。",
        "图中热液蚀变是否超过 {threshold} % 的面积？请说明百分比。",
        "以 {threshold} % 为界，该图块应填为蚀变区吗？请回答是或否并给出比例。",
        "检查该图块的蚀变情况：蚀变矿物像元是否多于 {threshold} %？",
    ),
    ("minerals", "en"): (
        "Which minerals cover at least {minimum} % of this tile? List them, the most abundant first.",
        "List the minerals of this tile by decreasing share, down to {minimum} %.",
        "Name every mineral that reaches {minimum} % of the area shown, in order of share.",
        "What minerals would a map of this tile show at {minimum} % or more? Order them by cover.",
        "Identify the main minerals here (at least {minimum} % each), largest first, or say none.",
        "Give the mineral list of this tile for shares of {minimum} % and above.",
    ),
    ("minerals", "zh"): (
        "哪些矿物至少覆盖该图块的 {minimum} %？请按含量由多到少列出。",
        "请按比例递减列出该图块中不少于 {minimum} % 的矿物。",
        "写出图中面积达到 {minimum} % 的所有矿物，按比例排序。",
        "该图块的矿物图上会出现哪些占 {minimum} % 或以上的矿物？按覆盖排序。",
        "识别此处的主要矿物（各不少于 {minimum} %），由多到少；没有则答无。",
        "给出该图块中比例在 {minimum} % 及以上的矿物清单。",
    ),
    ("analysis", "en"): (
        "Analyse this tile: alteration zone, minerals with their shares, copper potential.",
        "Describe the alteration of this tile in detail: zone, mineral shares and what they imply for copper.",
        "Write a short report on this tile with its zone, the minerals in per cent and the copper potential.",
        "What type of alteration is this, which minerals make it up, and what may be inferred about copper?",
        "Interpret the tile as an exploration geologist: zone, minerals and shares, inferred copper potential.",
        "Give a detailed analysis of the minerals, the alteration zone and the copper potential of this tile.",
    ),
    ("analysis", "zh"): (
        "分析该图块：蚀变带、各矿物比例、铜矿潜力。",
        "详细描述该图块的蚀变：蚀变带、矿物比例及其对铜矿的意义。",
        "为该图块写一份简短报告，包括蚀变带、矿物百分比和铜矿潜力。",
        "这是哪种类型的蚀变，由哪些矿物组成，对铜矿可作何推断？",
        "以勘查地质学家的角度解译该图块：蚀变带、矿物及比例、推断的铜矿潜力。",
        "请详细分析该图块的矿物、蚀变带和铜矿潜力。",
    ),
}

# Names that mean one of the classes at this spectral resolution. Sericite is fine-grained muscovite.
SYNONYMS = {
    "alunite": ("natroalunite", "alunites", "明矾石", "明矾"),
    "kaolinite": ("kaolin", "kaolinites", "高岭石", "高岭土"),
    "muscovite": ("sericite", "绢云母"),
    "montmorillonite": ("smectite", "smectites", "bentonite", "蒙脱石", "蒙皂石", "微晶高岭石", "膨润土"),
    "buddingtonite": ("ammonium feldspar", "ammonium-feldspar", "水铵长石", "铵长石", "水氨长石", "氨长石"),
    "calcite": ("calcites", "方解石"),
    "chlorite": ("chlorites", "clinochlore", "绿泥石"),
    "epidote": ("epidotes", "绿帘石"),
    "white mica": ("white micas", "illite", "phengite", "paragonite", "伊利石", "多硅白云母", "钠云母"),
    "dickite": ("地开石",),
}


# ---------------------------------------------------------------- truth

def percent(share: float) -> int:
    """A share of 0..1 as a percentage rounded to the nearest 5 (halves upwards)."""
    return 5 * int(share * 20 + 0.5 + 1e-9)


def copper_share(shares: Mapping[str, float]) -> float:
    """Share of the valid pixels held by the copper-related alteration minerals, 0..1."""
    return min(1.0, sum(share for name, share in shares.items() if name in COPPER))


def present(shares: Mapping[str, float], min_share: float) -> list[str]:
    """Minerals that hold at least `min_share`, the largest first; equal shares in the order of the classes."""
    found = [name for name in MINERALS if shares.get(name, 0.0) >= min_share]
    return sorted(found, key=lambda name: -shares[name])


def zone(shares: Mapping[str, float], min_share: float) -> str:
    """Alteration zone by its dominant minerals, one of ZONES.

    Kaolinite belongs to the advanced argillic zone where alunite, pyrophyllite or dickite is with it and to the
    argillic zone otherwise.
    Calcite counts as propylitic only beside chlorite or epidote: alone it may be unaltered limestone. Buddingtonite
    (ammonium-bearing hot-spring fluid) marks no zone of this scheme. Only minerals of at least `min_share` count.
    """
    held = {name: shares[name] for name in present(shares, min_share)}
    belongs = {mineral.name: mineral.zone for mineral in CLASSES if mineral.zone}
    if {"alunite", "pyrophyllite", "dickite"} & set(held):
        belongs["kaolinite"] = "advanced argillic"
    if not {"chlorite", "epidote"} & set(held):
        del belongs["calcite"]
    weight = dict.fromkeys(ZONES[:-1], 0.0)
    for name, share in held.items():
        if name in belongs:
            weight[belongs[name]] += share
    best = max(weight, key=lambda name: weight[name])
    return best if weight[best] > 0 else "none"


def potential(share: float, alteration_threshold: float) -> str:
    """Copper potential inferred from the cover of copper-related minerals alone, one of POTENTIALS."""
    if share <= alteration_threshold:
        return "low"
    return "high" if share >= HIGH_POTENTIAL else "moderate"


# ---------------------------------------------------------------- answers

def alteration_answer(altered: bool, share: float, language: str = "en") -> str:
    """Fixed form of the yes/no answer; `share` in 0..1 is written rounded to 5 %."""
    if language == "zh":
        return f"{'是' if altered else '否'}。蚀变矿物约占该图块的 {percent(share)} %。"
    return f"{'Yes' if altered else 'No'}. Alteration minerals cover about {percent(share)} % of this tile."


def minerals_answer(names: Sequence[str], language: str = "en") -> str:
    """Fixed form of the mineral list, in the order given; "none" for an empty one."""
    if language == "zh":
        return "、".join(NAME_ZH[name] for name in names) or "无"
    return ", ".join(names) or "none"


def analysis_answer(zone_name: str, shares: Mapping[str, float], copper: str, language: str = "en") -> str:
    """Fixed form of the analysis: zone, minerals with shares (in the order given), inferred copper potential."""
    if language == "zh":
        listed = "、".join(f"{NAME_ZH[name]} {percent(share)} %" for name, share in shares.items()) or "无"
        return f"蚀变带：{ZONE_ZH[zone_name]}。矿物：{listed}。铜矿潜力：{POTENTIAL_ZH[copper]}（推断，非实测）。"
    listed = ", ".join(f"{name} {percent(share)} %" for name, share in shares.items()) or "none"
    return f"Zone: {zone_name}. Minerals: {listed}. Copper potential: {copper} (inferred, not measured)."


# ---------------------------------------------------------------- records

def introduce(images: Sequence[str], language: str = "en") -> str:
    """One `<image>` line per image, then a sentence that says in the same order what they show."""
    stems = [PurePath(image).stem.rsplit("_", 1)[-1] for image in images]
    known = [COMPOSITES[stem][language == "zh"] for stem in stems if stem in COMPOSITES]
    lines = "<image>\n" * len(images)
    if len(known) != len(images):
        known = []
    if language == "zh":
        return lines + ("高光谱影像的一个图块" + (f"：{'、'.join(known)}。" if known else "。"))
    return lines + ("One tile of a hyperspectral scene" + (f": {', '.join(known)}." if known else "."))


def ask(question: str, images: Sequence[str], language: str = "en") -> str:
    """The whole human turn: images, what they show, the question."""
    return f"{introduce(images, language)}\n{question}"


def question(task: str, language: str = "en", rng: random.Random | None = None,
             alteration_threshold: float = 0.10, min_share: float = 0.05) -> str:
    """A question text of this task: a random phrasing with `rng`, the first one without."""
    phrasings = QUESTIONS[task, language]
    text = rng.choice(phrasings) if rng else phrasings[0]
    return text.format(threshold=f"{100 * alteration_threshold:g}", minimum=f"{100 * min_share:g}")


def tile_records(tile_id: str, images: Sequence[str], shares: Mapping[str, float], language: str, rng: random.Random,
                 split: str, alteration_threshold: float = 0.10, min_share: float = 0.05) -> list[dict]:
    """The three records of one tile in one language.

    Args:
        tile_id: prefix of the record ids, `<tile_id>-<task>` and, in Chinese, `<tile_id>-<task>-zh`.
        images: paths of the composites relative to the media root, in the order they are shown.
        shares: mineral name -> share of the tile's valid pixels, 0..1; minerals left out have none, other names
            (background) are passed over.
        rng: chooses the phrasings; the same state gives the same records.
        alteration_threshold: a tile is altered where the copper-related minerals hold more than this share.
        min_share: a mineral is named from this share on.

    Returns:
        Three records in the order of TASKS. `target` holds alteration (0 or 1), copper_share and every mineral's share.
    """
    altered_share = copper_share(shares)
    altered = altered_share > alteration_threshold
    names = present(shares, min_share)
    answers = {
        "alteration": alteration_answer(altered, altered_share, language),
        "minerals": minerals_answer(names, language),
        "analysis": analysis_answer(zone(shares, min_share), {name: shares[name] for name in names},
                                    potential(altered_share, alteration_threshold), language),
    }
    target = {"alteration": int(altered), "copper_share": round(altered_share, 6)}
    target |= {name: round(float(shares.get(name, 0.0)), 6) for name in MINERALS}
    suffix = "-zh" if language == "zh" else ""
    return [{
        "id": f"{tile_id}-{task}{suffix}",
        "image": list(images),
        "conversations": [
            {"from": "human",
             "value": ask(question(task, language, rng, alteration_threshold, min_share), images, language)},
            {"from": "gpt", "value": answers[task]},
        ],
        "target": dict(target), "task": task, "split": split, "language": language,
    } for task in TASKS]


# ---------------------------------------------------------------- parsers

_LIMIT = re.compile(r"(?:more than|exceeds?|over|above|below|under|less than|at least|limit of|threshold of|"
                    r"超过|高于|低于|不到|至少|多于|少于|以)\s*(?:the\s+)?$")
_READ = 4000  # characters of an answer that are read; a model caught in a loop may write on
_NUMBER = r"(?<![\d.,])(\d{1,3}(?:[.,]\d{1,3})?)"
_PERCENT = re.compile(rf"{_NUMBER}\s*(?:%?\s*(?:-|~|–|—|to|至|到)\s*{_NUMBER}\s*)?(?:%|per\s?cent|pct)"
                      rf"|百分之\s*{_NUMBER}")
_CLAUSE_END = r"[.。;!?\n](?!\d)"
_CLAUSE = re.compile(_CLAUSE_END)
_NEGATION = re.compile(r"(?<![a-z])(?:no|not(?!\s+only)|none|nor|neither|without|lacks?|lacking|free of|absence of|"
                       r"isn't|aren't|doesn't|don't|cannot|excluding|rather than)(?![a-z])|"
                       r"没有|不含|不是|不存在|不见|未|无|缺")
_TURN = re.compile(r"(?<![a-z])(?:but|however|only|except|instead|while|whereas)(?![a-z])|但|只有|仅|而是|除了")
_ABSENT = re.compile(r"(?<![a-z])(?:absent|missing|not|none|no|isn't|aren't|lacking)(?![a-z])|"
                     r"未|无|不存在|不见|缺失|没有")
_LINK = re.compile(r"(?:[\s,、&/+*()\-]|(?<![a-z])(?:and|or|nor|plus|with|then)(?![a-z])|和|与|及|以及|或|还有|含|"
                   rf"{_PERCENT.pattern}|about|approximately|around|约|占|:)*")
_NOTHING = re.compile(r"(?<![a-z])(?:none|nothing|no(?:\s+[a-z]+){0,3}\s+minerals?|not\s+any|background only|"
                      r"minerals?\s*:\s*no)(?![a-z])|^\s*(?:no|n/a)\s*[.。]?\s*$|^\s*(?:答案?:)?\s*(?:无|没有|未检出|未见)|"
                      r"(?:没有|无|未检出|未见|未发现)[^,。;]{0,8}矿物|矿物\s*:\s*(?:无|没有)")
_YES = re.compile(r"(?<![a-z])(?:yes|yeah|yep|true|correct|affirmative)(?![a-z])")
_NO = re.compile(r"^\W*(?:answer\W+)?(?:no|nope|false|negative)(?![a-z])|"
                 r"(?<=[.:;!?\n,])\s*(?:no|nope|false|negative)\s*(?:[.,:;!?]|$)")
_YES_ZH = re.compile(r"^\W*(?:答案?\s*:\s*)?(?:是|有|对|存在|属于|超过)(?!否)")
_NO_ZH = re.compile(r"^\W*(?:答案?\s*:\s*)?(?:否|不|没|无|未)")
_FREE_NO = re.compile(r"(?:not|isn't|no|without|hardly|un)[\s\-]*(?:[a-z]+\s+){0,4}alter|"
                      r"alter(?:ation|ed)[^.]*\b(?:absent|not)\b|does(?:n't| not) (?:exceed|reach)|"
                      r"(?:不是|非|无|没有|未见|未发生|未发现|不属于|不存在)[^。,]{0,8}蚀变|"
                      r"(?:未|没有|不)超过")
_FREE_YES = re.compile(r"\b(?:is|are|as)\s+(?:[a-z]+\s+){0,4}alter|alteration zone|exceeds?|"
                       r"(?:是|属于|存在|有)[^。,]{0,8}蚀变|超过")
_ZONE_WORDS = (
    ("advanced argillic", r"advanced[\s\-]+argillic|高级泥化|高級泥化|深度泥化"),
    ("phyllic", r"(?<![a-z])phyllic|sericitic|quartz-sericite|绢英岩化|绢云母化|千枚岩化"),
    ("propylitic", r"propylitic|propylitization|青磐岩化|青盘岩化"),
    ("argillic", r"(?<!advanced )(?<!advanced-)(?<![a-z])argillic|(?<!高级)(?<!高級)(?<!深度)泥化"),
    ("none", r"zone\s*:?\s*(?:is\s+)?(?:none|no\b|unaltered|not assigned|n/a)|no (?:\w+ ){0,2}zone|unaltered|"
             r"(?:蚀变)?带\s*:?\s*(?:无|没有)|未蚀变|无蚀变|没有蚀变"),
)
_POTENTIAL_WORDS = {"low": "low", "weak": "low", "poor": "low", "moderate": "moderate", "medium": "moderate",
                    "high": "high", "strong": "high", "低": "low", "弱": "low", "中": "moderate", "高": "high"}
_LEVEL = r"(low|weak|poor|moderate|medium|high|strong|低|弱|中|高)"
_POTENTIAL = re.compile(rf"(?:potential|潜力)[^.。;]*?{_LEVEL}|{_LEVEL}\w*\s+(?:\w+\s+){{0,2}}(?:copper|potential)|"
                        rf"{_LEVEL}等?(?:的)?(?:铜矿?)?潜力")
_MINERAL_SECTION = re.compile(r"(?:minerals?|矿物(?:组成|及比例)?)\s*:\s*(.*?)"
                              rf"(?={_CLAUSE_END}|copper|铜矿|$)", re.S)
_OTHER_SECTIONS = re.compile(rf"(?:alteration\s+)?zone\s*:.*?(?:{_CLAUSE_END}|$)|蚀变带\s*:.*?(?:{_CLAUSE_END}|$)|"
                             rf"copper potential.*|铜矿潜力.*", re.S)


def _names() -> tuple[re.Pattern, dict[str, str]]:
    meaning = {alias: name for name in MINERALS for alias in (name, NAME_ZH[name], *SYNONYMS.get(name, ()))}
    ordered = sorted(meaning, key=len, reverse=True)
    return re.compile(rf"(?<![a-z])({'|'.join(map(re.escape, ordered))})(?![a-z化])"), meaning


_NAME, MINERAL_NAMES = _names()


def _stated(plain: str) -> float | None:
    """Share of the first percentage that is not a limit ("more than 10 %"); of the first one where all are."""
    numbers = list(_PERCENT.finditer(plain))
    stated = [number for number in numbers if not _LIMIT.search(plain, 0, number.start())] or numbers
    return _share(stated[0]) if stated else None


def _plain(text: str) -> str:
    """The beginning of a text: full-width forms folded to half width, lower case, typographic apostrophes plain."""
    return unicodedata.normalize("NFKC", text[:_READ]).replace("’", "'").lower().strip()


def _share(match: re.Match) -> float | None:
    """The share a percentage stands for; the middle of a range; None beyond 100 %."""
    values = [float(number.replace(",", ".")) for number in match.groups() if number]
    share = sum(values) / len(values) / 100
    return share if share <= 1 else None


def parse_alteration(text: str) -> tuple[bool | None, float | None]:
    """Yes or no, and the share (0..1) it states; each None where it cannot be read.

    A text that says both yes and no says neither.
    """
    plain = _plain(text)
    yes = bool(_YES.search(plain) or _YES_ZH.search(plain))
    no = bool(_NO.search(plain) or (_NO_ZH.search(plain) and not _YES.search(plain)))
    if not yes and not no:
        no = bool(_FREE_NO.search(plain))
        yes = not no and bool(_FREE_YES.search(plain))
    return (None if yes == no else yes), _stated(plain)


def _statements(plain: str) -> tuple[dict[str, float | None], set[str]]:
    """Minerals affirmed (with the share that follows, if any) and minerals denied, in the order of the text.

    Minerals joined by nothing but commas, "and", "or" and figures form a group; a negation before or after a group
    in the same clause denies all of it.
    """
    matches = list(_NAME.finditer(plain))
    groups: list[list[re.Match]] = []
    for match in matches:
        if groups and _LINK.fullmatch(plain, groups[-1][-1].end(), match.start()):
            groups[-1].append(match)
        else:
            groups.append([match])
    affirmed: dict[str, float | None] = {}
    denied: set[str] = set()
    for index, group in enumerate(groups):
        start = groups[index - 1][-1].end() if index else 0
        end = groups[index + 1][0].start() if index + 1 < len(groups) else len(plain)
        before = _CLAUSE.split(_TURN.split(plain[start:group[0].start()])[-1])[-1]
        if index:  # "alunite is absent, kaolinite ...": what follows the last group up to the comma belongs to it
            before = before.split(",", 1)[-1]
        after = re.split(r",|(?<![a-z])and(?![a-z])", _TURN.split(_CLAUSE.split(plain[group[-1].end():end])[0])[0])[0]
        negated = bool(_NEGATION.search(before) or _ABSENT.search(after))
        for number, match in enumerate(group):
            name = MINERAL_NAMES[match.group(1)]
            stop = group[number + 1].start() if number + 1 < len(group) else end
            follows = _PERCENT.search(_CLAUSE.split(plain[match.end():stop])[0])
            share = _share(follows) if follows else None
            if negated or share == 0:
                denied.add(name)
            else:
                affirmed.setdefault(name, share)
    return {name: share for name, share in affirmed.items() if name not in denied}, denied


def _read_minerals(plain: str) -> dict[str, float | None] | None:
    affirmed, denied = _statements(plain)
    nothing = any(_NOTHING.search(clause) for clause in _CLAUSE.split(_NAME.sub("", plain)) if clause.strip())
    if affirmed:
        return None if re.match(r"\W*(?:none|nothing|无)\s*[.。;]", plain) else affirmed
    return {} if denied or nothing else None


def parse_minerals(text: str) -> set[str] | None:
    """Minerals that the text says are there; an empty set where it says there are none; None where it says nothing.

    Names of minerals outside the classes are passed over. A text that says none and names some is unreadable.
    """
    found = _read_minerals(_plain(text))
    return None if found is None else set(found)


def parse_analysis(text: str) -> dict | None:
    """Zone, minerals with shares and copper potential of an analysis.

    Returns:
        {"zone": one of ZONES or None, "minerals": {name: share 0..1 or None} or None, "potential": one of POTENTIALS
        or None}; None where nothing of it can be read.
    """
    plain = _plain(text)
    section = _MINERAL_SECTION.search(plain)
    listed = section.group(1) if section else _OTHER_SECTIONS.sub(" ", plain)
    minerals = _read_minerals(listed)
    zones = [(match.start(), name) for name, words in _ZONE_WORDS if (match := re.search(words, plain))]
    level = _POTENTIAL.search(plain)
    found = {
        "zone": min(zones)[1] if zones else None,
        "minerals": minerals,
        "potential": _POTENTIAL_WORDS[next(word for word in level.groups() if word)] if level else None,
    }
    return found if any(value is not None for value in found.values()) else None
