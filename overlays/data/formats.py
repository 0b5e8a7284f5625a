"""Rows of other formats -> records: OpenAI messages, ShareGPT, alpaca, query/response, prompt/completion, tools.

`to_record` reads every key whose meaning is known and refuses, by name, every key that would change what is trained if
it were read. All other keys are metadata and stay as they are. docs/data.md has the table.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from overlays.data.embedded import embed, embed_uri
from overlays.data.tool_calls import is_empty, one_of, parsed, read_calls, read_tools
from overlays.errors import UserError
from overlays.files import kind_of

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TOOL = "tool"  # role of a turn that holds what a tool answered
PLACEHOLDERS = {"image": "<image>", "video": "<video>"}
PLACEHOLDER = re.compile("|".join(PLACEHOLDERS.values()))
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

# The role names of all formats -> the name in a record; "call" becomes a gpt turn with `tool_calls`.
_SIDES = {
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot"), "gpt"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "tool_response", "function"), TOOL),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
# The key that tells a format -> the other keys that only this format has.
_FORMS = {
    "conversations": (),
    "messages": (),
    "instruction": ("input", "output", "history"),
    "query": ("response", "history"),
    "prompt": ("completion",),
}
_PARTNERS = {key for keys in _FORMS.values() for key in keys}
_SYSTEM = ("system", "system_prompt")
_LISTS = {"images": "image", "videos": "video"}
_RATES = ("fps", "sample_fps")
_ANSWERS = ("chosen", "rejected")
_REASONING = ("reasoning_content", "reasoning", "thinking")
# Keys that would change text, media or labels if they were read, and that nothing here reads.
_UNREAD = {
    **dict.fromkeys(("audio", "audios"), "these models take no audio"),
    "objects": "write the names and boxes into the turns",
    **dict.fromkeys(("rejected_response", "rejected_messages", "rejected_images", "kto_tag"),
                    "preference pairs are the keys chosen and rejected, for overlays.train_dpo"),
    **dict.fromkeys(("chat_template_kwargs", "enable_thinking", "add_generation_prompt"),
                    "the chat template takes no settings from a row"),
    **dict.fromkeys(("documents", "functions"), "tools are the key tools"),
    **dict.fromkeys(("loss", "loss_scale"), "labels are the assistant's turns"),
    **dict.fromkeys(("max_pixels", "min_pixels", "total_pixels", "resized_height", "resized_width", "nframes",
                     "min_frames", "max_frames"), "the flags --max_pixels, --video_max_frames, ... set it for all"),
    **dict.fromkeys(("conversation", "dialog", "dialogue"), "call it conversations"),
}
# Names that others give to media. They are metadata where the record has media of that kind.
_MISNAMED = {
    **dict.fromkeys(("image_path", "image_paths", "image_file", "image_url", "image_urls", "img"), "image"),
    **dict.fromkeys(("video_path", "video_paths", "video_file", "video_url"), "video"),
}
_TURN_UNREAD = {
    **_UNREAD,
    **dict.fromkeys(("image", "images", "video", "videos"), "media are keys of the row, or parts of content"),
    **dict.fromkeys(("mask", "loss_mask", "prefix", "refusal"), "nothing here reads it"),
}
_TRAINED = ("loss", "weight", "train")  # of a turn: whether it is trained
_PART_UNREAD = {
    **_UNREAD, **dict.fromkeys(("video_start", "video_end"), "here they are frame numbers, and keys of the row"),
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_PARTS = {"image": "image", "image_url": "image", "input_image": "image", "video": "video", "video_url": "video"}
_SPECIAL = ({*_FORMS, *_PARTNERS, *_SYSTEM, *_LISTS, *_UNREAD, *_MISNAMED, "tools", *_ANSWERS, "sample_fps"}
            - {"conversations"})


def to_record(row: Mapping) -> dict:
    """A row of any known format as a record; one that is a record already is returned as it is.

    Turns of the record have `from` (human, gpt, system or tool), `value` and, where the assistant calls tools,
    `tool_calls` [{"name", "arguments"}]. What is wrong with a record itself is left to `records.check_record`.

    Raises:
        UserError: a key that nothing reads, two formats in one row, or a value of a wrong type, in one clause.
    """
    if _is_record(row):
        return dict(row)
    row = {key: value for key, value in row.items() if value is not None}
    forms = [key for key in _FORMS if not is_empty(row.get(key))]
    if forms == ["conversations", "messages"]:
        return _one_of_both(row)
    if len(forms) > 1:
        raise UserError(f"both {forms[0]} and {forms[1]} hold a conversation; keep one of them")
    form = forms[0] if forms else next((key for key in _FORMS if key in row), None)
    if form is None and {"input", "output"} <= row.keys():
        form = "instruction"
    _refuse(row, _UNREAD)
    _refuse(row, {key: f"it belongs to rows of {' or '.join(name for name in _FORMS if key in _FORMS[name])}"
                  for key in _PARTNERS - {*_FORMS.get(form, ())}})
    if form is None:
        return row
    return _convert(row, form)


def _is_record(row: Mapping) -> bool:
    """Whether there is nothing to convert. It is asked of every row, so it looks at no more than it must."""
    if any(row.get(key) is not None for key in _SPECIAL & row.keys()):
        return False
    turns = row.get("conversations")
    if turns is None:
        return "conversations" in row or not row.keys() & _SPECIAL
    return (
        isinstance(turns, list)
        and all(isinstance(turn, dict) and turn.keys() == {"from", "value"} and isinstance(turn["value"], str)
                and isinstance(turn["from"], str) and turn["from"] in ROLES for turn in turns)
        and all(isinstance(name, str) and not name.startswith("data:") for name in _listed(row.get("image")))
        and not isinstance(row.get("video"), list | dict | bytes) and not str(row.get("video")).startswith("data:")
    )


def _listed(value: object) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


def _refuse(row: Mapping, reasons: Mapping[str, str], where: str = "") -> None:
    for key in row:
        if key in reasons and not is_empty(row[key]):
            raise UserError(f"{where}the key {key!r} is not read: {reasons[key]}")


def _one_of_both(row: dict) -> dict:
    """The record of a row that says the same as conversations and as messages."""
    record = to_record({key: value for key, value in row.items() if key not in ("messages", *_LISTS)})
    from_messages = to_record({key: value for key, value in row.items() if key not in ("conversations", *PLACEHOLDERS)})
    same = [record.get("conversations"), *(_listed(record.get(kind)) for kind in PLACEHOLDERS)] == \
        [from_messages.get("conversations"), *(_listed(from_messages.get(kind)) for kind in PLACEHOLDERS)]
    if not same:
        raise UserError("conversations and messages say different things; keep one of them")
    return record


def _convert(row: dict, form: str) -> dict:
    rest = {key: value for key, value in row.items()
            if key not in {*_FORMS, *_FORMS[form], *_SYSTEM, *_LISTS, *PLACEHOLDERS, *_RATES, *_ANSWERS, "tools"}}
    reader = _Turns()
    reader.read(_messages(row, form))
    turns = _with_system(reader.turns, row)
    pools = {kind: _pool(row, kind) for kind in PLACEHOLDERS}
    frame_rates = {}
    for kind, pool in pools.items():
        shown = reader.media[kind]
        files, frame_rates[kind] = _in_shown_order(pool, shown, kind, None if form == "conversations" else turns)
        if files:
            one = len(files) == 1 and isinstance(files[0], str)
            rest[kind] = files[0] if one else files
        elif kind not in rest and any(key in rest and not is_empty(rest[key]) for key in _MISNAMED
                                      if _MISNAMED[key] == kind):
            key = next(key for key in _MISNAMED if _MISNAMED[key] == kind and not is_empty(rest.get(key)))
            raise UserError(f"the key {key!r} is not read: call it {kind}")
    rest |= _frame_rate(row, frame_rates["video"])
    tools = read_tools(row.get("tools"))
    if tools:
        rest["tools"] = tools
    for side in _ANSWERS:
        if side in row:
            rest[side] = _answer(row[side], side)
    return {**rest, "conversations": turns}


# ---- turns


def _messages(row: Mapping, form: str) -> list:
    """The conversation of a row as a list of turns in either spelling."""
    value = row.get(form)
    if form in ("conversations", "messages"):
        value = parsed(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
        if not isinstance(value, list) or not value:
            raise UserError(f"{form} must be a list of at least one turn")
        return value
    if form == "prompt":
        asked, answer = value, row.get("completion")
        turns = list(asked) if isinstance(asked, list) else [_text_turn("user", asked, form)]
        if isinstance(answer, list):
            return turns + answer
        return turns if answer is None else [*turns, _text_turn("assistant", answer, "completion")]
    turns = []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise UserError("history must be a list of [question, answer]")
    for asked, answer in history:
        turns += [_text_turn("user", asked, "history"), _text_turn("assistant", answer, "history")]
    if form == "instruction":
        pieces = [_text_turn("user", row.get(key, ""), key)["content"] for key in ("instruction", "input")]
        asked, key = "\n".join(piece for piece in pieces if piece), "output"
    else:
        asked, key = value, "response"
    turns.append(_text_turn("user", asked, form))
    return turns if row.get(key) is None else [*turns, _text_turn("assistant", row[key], key)]


def _text_turn(role: str, text: object, key: str) -> dict:
    if not isinstance(text, str):
        raise UserError(f"{key} must be text, not {kind_of(text)}")
    return {"role": role, "content": text}


def _answer(value: object, side: str) -> object:
    """The answer of a preference pair: text, an assistant's turn, or a list of one."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(value, Mapping):
        return value  # preferences.check_pair names what is no text
    reader = _Turns()
    reader.read([value])
    turn = reader.turns[0]
    if turn.keys() != {"from", "value"} or turn["from"] != "gpt" or PLACEHOLDER.search(turn["value"]):
        raise UserError(f"{side} must be an answer in words")
    return turn["value"]


def _with_system(turns: list[dict], row: Mapping) -> list[dict]:
    """The turns with the row's system prompt before them."""
    for key in _SYSTEM:
        if key in row and not isinstance(row[key], str):
            raise UserError(f"{key} must be text, not {kind_of(row[key])}")
    texts = {row[key] for key in _SYSTEM if row.get(key)}
    texts |= {turns[0]["value"]} if texts and turns[0]["from"] == "system" else set()
    if len(texts) > 1:
        raise UserError("the row has two different system prompts; keep one of them")
    if not texts or turns[0]["from"] == "system":
        return turns
    return [{"from": "system", "value": texts.pop()}, *turns]


class _Turns:
    """Turns in any spelling -> turns of a record.

    Attributes:
        turns: what was read.
        media: by kind, (medium, frames per second or None) for each placeholder of the turns in their order; the medium
            is None where the row's own list has it.
    """

    def __init__(self):
        self.turns: list[dict] = []
        self.media: dict[str, list[tuple]] = {kind: [] for kind in PLACEHOLDERS}

    def read(self, messages: list) -> None:
        for number, turn in enumerate(messages, start=1):
            if not isinstance(turn, Mapping):
                raise UserError(f"turn {number} must be an object, not {kind_of(turn)}")
            self._turn({key: value for key, value in turn.items() if value is not None}, f"turn {number}")

    def _turn(self, turn: dict, where: str) -> None:
        role = one_of(turn, ("from", "role"), where)
        side = _SIDES.get(role) if isinstance(role, str) else None
        if side is None:
            raise UserError(f"{where} has the unknown role {role!r}; roles are human, gpt, system and tool")
        _check_trained(turn, side, where)
        _refuse({key: value for key, value in turn.items() if key not in _TRAINED}, _TURN_UNREAD, f"{where}: ")
        calls = read_calls(turn.get("tool_calls"), where) + read_calls(turn.get("function_call"), where)
        content = one_of(turn, ("value", "content"), where)
        if side == "call":
            calls, content, side = read_calls(content, where) + calls, "", "gpt"
            if not calls:
                raise UserError(f"{where} is a tool call without a name and arguments")
        if calls and side != "gpt":
            raise UserError(f"{where} ({role}) calls a tool; only the assistant can")
        text = self._text("" if content is None and calls else content, side, where)
        thoughts = [turn[key] for key in _REASONING if not is_empty(turn.get(key))]
        if any(other != thoughts[0] for other in thoughts):
            raise UserError(f"{where} has two different texts of reasoning; keep one of them")
        thought = thoughts[0] if thoughts else None
        if thought is not None:
            if not isinstance(thought, str) or side != "gpt":
                raise UserError(f"{where}: reasoning must be text of the assistant")
            text = f"<think>\n{thought}\n</think>\n\n{text}"
        last = self.turns[-1] if self.turns else {}
        if calls and not text and last.get("from") == "gpt":  # calls in turns of their own belong to the same message
            last["tool_calls"] = last.get("tool_calls", []) + calls
            return
        self.turns.append({"from": side, "value": text, **({"tool_calls": calls} if calls else {})})

    def _text(self, content: object, side: str, where: str) -> str:
        """The content as text with a placeholder for each medium."""
        pieces = []
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, str):
                pieces.append(part)
                if side in ("human", TOOL):
                    for placeholder in PLACEHOLDER.findall(part):
                        self.media[placeholder[1:-1]].append((None, None))
            elif not isinstance(part, Mapping):
                raise UserError(f"the value of {where} must be text, not {kind_of(part)}")
            else:
                pieces.append(self._part({key: value for key, value in part.items() if value is not None}, side, where))
        return "".join(pieces)

    def _part(self, part: dict, side: str, where: str) -> str:
        name = part.get("type", next((key for key in (*_MEDIA_PARTS, *_TEXT_PARTS) if key in part), None))
        other = _MEDIA_PARTS if name in _TEXT_PARTS else _TEXT_PARTS
        beside = next((key for key in other if not is_empty(part.get(key))), None)
        if beside is not None:
            raise UserError(f"{where} has a part of the type {name!r} with the key {beside!r}; write two parts")
        if name in _TEXT_PARTS:
            text = part.get("text", part.get(name))
            if not isinstance(text, str):
                raise UserError(f"{where} has a part of text that is {kind_of(text)}")
            return self._text(text, side, where)
        kind = _MEDIA_PARTS.get(name) if isinstance(name, str) else None
        if kind is None:
            raise UserError(f"{where} has a part of the type {name!r}, which is not read")
        _refuse(part, _PART_UNREAD, f"{where}: ")
        keys = (name, kind, f"{kind}_url", "url", "path", "bytes")
        values = [part[key] for key in dict.fromkeys(keys) if not is_empty(part.get(key))]
        named = [part[key] for key in dict.fromkeys(keys[:4]) if not is_empty(part.get(key))]  # not path and bytes
        if any(value != named[0] for value in named):
            raise UserError(f"{where} has a part with two different {kind}s; write two parts")
        value = values[0] if values else None
        medium = None if value is None else _medium(value, kind)
        rate = _fps_of(part, where)
        if rate is not None and kind == "image":
            raise UserError(f"{where}: an image has no frames per second")
        if side in ("human", TOOL):
            self.media[kind].append((medium, rate))
        return PLACEHOLDERS[kind]


def _check_trained(turn: Mapping, side: str, where: str) -> None:
    """Marks that say which turns are trained must say what is done anyway."""
    for key in _TRAINED:
        if key in turn and bool(turn[key]) != (side in ("gpt", "call")) or turn.get(key, 0) not in (0, 1):
            raise UserError(f"{where}: the key {key!r} is not read: the assistant's turns are trained, and no others")


# ---- media


def _medium(value: object, kind: str) -> str | list[str]:
    """A medium as its name in a record: a path, an embedded file, or for a video a list of frames."""
    if isinstance(value, str):
        return embed_uri(value) if value.startswith("data:") else value
    if isinstance(value, bytes):
        return embed(value)
    if isinstance(value, Mapping):
        content = value.get("bytes")
        if isinstance(content, bytes) and content:
            return embed(content)
        value = next((value[key] for key in ("url", "path", kind) if isinstance(value.get(key), str)), value)
        if isinstance(value, str):
            return _medium(value, kind)
    if isinstance(value, list) and kind == "video" and value:
        frames = [_medium(frame, "image") for frame in value]
        if all(isinstance(frame, str) for frame in frames):
            return frames
    raise UserError(f"{kind} must be a path or a list of paths, not {kind_of(value)}")


def _pool(row: Mapping, kind: str) -> list:
    """The media that a row names beside its turns."""
    pools = []
    for key in (kind, f"{kind}s"):
        if not is_empty(row.get(key)):
            pools.append([_medium(value, kind) for value in _listed(row[key])])
    if len(pools) == 2 and pools[0] != pools[1]:
        raise UserError(f"{kind} and {kind}s name different files; keep one of them")
    return pools[0] if pools else []


def is_frame(name: object) -> bool:
    """Whether a name is that of a still picture, as frames of a video are stored."""
    return isinstance(name, str) and (PurePosixPath(name).suffix.lower() in FRAME_SUFFIXES
                                      or name.startswith("embedded:"))


def _in_shown_order(pool: list, shown: list[tuple], kind: str, turns: list[dict] | None) -> tuple[list, list]:
    """(media in the order of their placeholders, frames per second of each).

    A flat list of pictures is one video where at most one is shown. Where no turn shows a medium of the row's own list,
    all go in front of the first human turn, if `turns` is given, as ms-swift and TRL have it. Where the numbers differ,
    the record keeps what there is, and `records.check_record` says so.
    """
    wanted = sum(medium is None for medium, _ in shown)
    if kind == "video" and wanted <= 1 and pool and all(map(is_frame, pool)):
        pool = [pool]
    if pool and not wanted and turns is not None:
        first = next((turn for turn in turns if turn["from"] == "human"), None)
        if first is not None:
            first["value"] = PLACEHOLDERS[kind] * len(pool) + "\n" + first["value"]
            return [*pool, *(medium for medium, _ in shown)], [None] * len(pool) + [fps for _, fps in shown]
    files, frame_rates, left = [], [], list(pool)
    for medium, frame_rate in shown:
        if medium is not None or left:
            files.append(left.pop(0) if medium is None else medium)
            frame_rates.append(frame_rate)
    return files + left, frame_rates + [None] * len(left)


def _fps_of(values: Mapping, where: str = "") -> object:
    """Frames per second of a row or part, whichever name it has; checked by `records.check_record`."""
    return one_of(values, _RATES, where or "the row")


def _frame_rate(row: Mapping, of_parts: list) -> dict:
    """The record's key `fps`: the row's own, or that of its parts."""
    of_row = _fps_of(row)
    if any(rate is not None for rate in of_parts):
        if of_row is not None:
            raise UserError("fps is given for the row and for its parts; keep one of them")
        return {"fps": of_parts}
    return {} if of_row is None else {"fps": of_row}
