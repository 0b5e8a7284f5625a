"""Question files as SQA3D, ScanQA and Video-3D-LLM publish them, and training data of LLaMA-Factory -> one kind of row;
and what a question asks for."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from overlays.data import formats
from overlays.domains.base import SPLITS
from overlays.domains.scenes.infos import is_half, printable, scene_name
from overlays.errors import UserError

# First pattern that fits a question names its type; the types of WHERE need the geometry of the scene.
TYPES: tuple[tuple[str, str], ...] = (
    ("distance", r"\bhow far\b|\bhow many (?:metres|meters|feet|steps)\b|\bdistance\b"),
    ("colour", r"\bcolou?r\b"),
    ("count", r"\bhow many\b"),
    ("height", r"\bhow (?:high|tall)\b|\bheight\b"),
    ("place", r"^where\b|\b(?:which|what) (?:wall|corner|side|half|quarter|part of the room)\b"),
    ("nearest", r"\b(?:nearer|nearest|closer|closest|farther|farthest|further|furthest)\b"),
    ("direction", r"\b(?:left|right|behind|front|direction|o'clock|turn)\b"),
    ("yes-no", r"^(?:is|are|am|was|were|do|does|did|can|could|will|would|has|have|should)\b"),
    ("object", r"^(?:what|which)\b"),
)
WHERE = ("distance", "height", "place", "nearest", "direction")
_PLACE = re.compile(r"<(?:image|video)>")
_INSTRUCTION = re.compile(r"\s*Answer the question using a single word or (?:a )?(?:single )?phrase\.?\s*$", re.I)


@dataclass(frozen=True)
class Question:
    """A row of a question file. `problem` says why it cannot be used, "" where it can."""

    dataset: str
    id: str
    scene: str
    text: str
    answers: tuple[str, ...]
    situation: str = ""
    split: str | None = None
    problem: str = ""


def question_type(text: str) -> str:
    """Type of a question by its words: a name of TYPES, or "other". A situation told before it does not count."""
    sentences = re.split(r"(?<=[.!?])\s+", text.strip().lower())
    lowered = next((sentence for sentence in reversed(sentences) if sentence.endswith("?")), text.strip().lower())
    return next((name for name, pattern in TYPES if re.search(pattern, lowered)), "other")


def task_of(kind: str) -> str:
    """"where" or "what" for a question type."""
    return "where" if kind in WHERE else "what"


def find_files(paths: list[Path]) -> list[Path]:
    """Question files named or lying in the folders named; annotation files of SQA3D go with their questions.

    Raises:
        UserError: a path that is not there, or none found.
    """
    files = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*.json") if "annotations" not in file.name
                            and file.name != "answer_dict.json" and file.is_file())
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"there is no question file or folder {path}")
    if not files:
        raise UserError(f"no question files (*.json) in {', '.join(map(str, paths))}: name them with --questions")
    return files


def read_questions(path: Path) -> list[Question]:
    """Questions of a file in any of the known layouts, told apart by its content.

    Raises:
        UserError: no JSON, an unknown layout, or SQA3D questions without their annotations.
    """
    content = _json(path)
    split = next((name for name in SPLITS if re.search(rf"(?:^|[_\-.]){name}(?:ing)?(?:[_\-.]|$)", path.name.lower())),
                 None)
    if isinstance(content, dict) and isinstance(content.get("questions"), list):
        return _sqa3d(path, content["questions"], split)
    if isinstance(content, list):
        first = next((row for row in content if isinstance(row, dict)), {})
        if {"instruction", "messages"} & first.keys() or "images" in first:
            return [question for number, row in enumerate(content) for question in _turns(row, path, split, number)]
        if "conversations" in first:
            return [_video3dllm(row, path, split, number) for number, row in enumerate(content)]
        if "question" in first and "scene_id" in first:
            return [_scanqa(row, split, number) for number, row in enumerate(content)]
    raise UserError(f"{path} is in none of the known layouts: SQA3D (questions), ScanQA (a list with question and "
                    "scene_id), Video-3D-LLM (a list with video and conversations) or LLaMA-Factory (a list with "
                    "instruction or messages, and images)")


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"there is no question file {path}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"question file {path} is not JSON: {error}") from None


def _texts(value: object) -> tuple[str, ...]:
    """The texts in a value as files nest them: "a", 2, {"answer": "a"}, {"text": "a"}, or a list of such."""
    texts = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            item = next((item[key] for key in ("answer", "text", "value") if key in item), None)
        if isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item):
            item = str(int(item) if item == int(item) else item)
        if isinstance(item, str) and item.strip():
            texts.append(item.strip())
    return tuple(texts)


def _id(value: object, number: int) -> str:
    """An id as text, so that 1 and "1" are one; a row without an id has its number in the file."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"row {number}" if value is None else printable(str(value))


def _make(dataset: str, name: str, scene: object, text: object, answers: tuple[str, ...], situation: object = None,
          split: str | None = None, problem: str = "") -> Question:
    """A Question whose fields are what they should be; what is not becomes its problem."""
    told = _texts(situation)
    parts = [part for part in (situation if isinstance(situation, list) else [situation]) if part or part == 0]
    if not isinstance(scene, str) or not scene:
        problem, scene = problem or "no scene is named", ""
    if not isinstance(text, str) or not text.strip():
        problem, text = problem or "no question text", ""
    if not answers:
        problem = problem or "no answer"
    if len(told) != len(parts):
        problem = problem or "its situation is not text"
    if any(_PLACE.search(answer) for answer in answers):
        problem = problem or "its answer holds <image> or <video>, which stand for media"
    if any(map(is_half, (scene, text, *answers, *told))):
        problem = problem or "text holds half a character"
    before = " ".join(filter(None, (_PLACE.sub("", part).strip() for part in told)))
    return Question(printable(dataset), name, printable(scene_name(scene)),
                    _INSTRUCTION.sub("", _PLACE.sub("", text)).strip(), answers, before, split, problem)


def _sqa3d(path: Path, rows: list, split: str | None) -> list[Question]:
    other = path.with_name(path.name.replace("questions", "sqa_annotations"))
    if other == path or not other.is_file():
        raise UserError(f"the SQA3D questions {path} need their annotations beside them: {other.name} is missing")
    content = _json(other)
    notes = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(notes, list):
        raise UserError(f"{other} is not an SQA3D annotation file: it has no annotations")
    answers = {_id(note["question_id"], 0): _answers(note) for note in notes
               if isinstance(note, dict) and note.get("question_id") is not None}
    found = []
    for number, row in enumerate(rows):
        row = row if isinstance(row, dict) else {}
        own = _id(row.get("question_id"), number)
        found.append(_make("sqa3d", own, row.get("scene_id"), row.get("question"), answers.get(own, ()),
                           row.get("situation"), split))
    return found


def _answers(row: dict) -> tuple[str, ...]:
    return _texts(row.get("answers")) or _texts(row.get("answer"))


def _scanqa(row: object, split: str | None, number: int) -> Question:
    row = row if isinstance(row, dict) else {}
    return _make("scanqa", _id(row.get("question_id"), number), row.get("scene_id"), row.get("question"),
                 _answers(row), row.get("situation"), split)


def _turns(row: object, path: Path, split: str | None, number: int) -> list[Question]:
    """The questions of a row of alpaca or ShareGPT, one for each answer; the scene is named or its pictures' folder."""
    row = row if isinstance(row, dict) else {}
    name, problem, turns = _id(row.get("id"), number), "", []
    scene = row.get("scene_id") or row.get("scene")
    try:
        record = formats.to_record({key: value for key, value in row.items()
                                    if key not in ("id", "scene", "scene_id", "split", "metadata")})
        turns = record.get("conversations") or []
        scene = scene or _scene_of(record.get("image") or record.get("video"))
    except UserError as error:
        problem = str(error)
    found, asked = [], None
    for turn in turns:
        if turn["from"] == "human":
            asked = turn["value"]
        elif turn["from"] == "gpt":
            found.append(_make(path.stem, name if not found else f"{name}-{len(found) + 1}", scene, asked,
                               _texts(turn["value"]), split=str(row.get("split") or "") or split))
    return found or [_make(path.stem, name, scene, asked, (), split=split, problem=problem)]


def _scene_of(media: object) -> str | None:
    """"scene0000_00" of "scannet/posed_images/scene0000_00/00000.jpg", or of a folder of that name."""
    first = media[0] if isinstance(media, list) and media else media
    if not isinstance(first, str):
        return None
    parts = PurePosixPath(first.replace("\\", "/")).parts
    if "posed_images" in parts[:-1]:
        return parts[parts.index("posed_images") + 1]
    return parts[-2] if len(parts) > 1 and PurePosixPath(parts[-1]).suffix else parts[-1] if parts else None


def _video3dllm(row: object, path: Path, split: str | None, number: int) -> Question:
    row = row if isinstance(row, dict) else {}
    turns = row.get("conversations")
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    asked = next((turn.get("value") for turn in turns if turn.get("from") == "human"), None)
    answer = next((turn.get("value") for turn in turns if turn.get("from") == "gpt"), None)
    notes = row.get("metadata") if isinstance(row.get("metadata"), dict) else {}
    problem = ""
    if any("<ground>" in str(turn.get("value")) or "<coord>" in str(turn.get("value")) for turn in turns):
        problem = "asks for or gives a box, which no text answer holds"
    return _make(str(notes.get("dataset", path.stem.split("_")[0])), _id(row.get("id"), number),
                 row.get("video") or row.get("scene_id"), asked, _answers(row) or _answers(notes) or _texts(answer),
                 split=split, problem=problem)
