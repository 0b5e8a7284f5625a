"""Records -> chat messages -> text, and where in the text the answers are.

What is text stays text. A control token of the template (<|im_end|>, <|image_pad|>, ...) that somebody typed into a
question or an answer is marked, so that only the template opens and closes turns. Tokens that a template does not use
for structure (<think>, <|box_start|>, ...) keep their meaning.

Answers are found from the template's structure: the conversation is rendered once as it is and once with a stand-in for
every answer, and what differs is the answer. Whatever the words are, they cannot be mistaken for structure.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from overlays.data import records
from overlays.data.media import Media
from overlays.data.template import QUESTION, apply, template_of
from overlays.errors import UserError

_SPLIT = re.compile("(" + "|".join(records.PLACEHOLDERS.values()) + ")")


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, each medium still one placeholder token.

    answers: (start, end, end with the end token) of every assistant turn's words, in characters of `text`.
    typed: (position, token) of control tokens that are only typed text; `text` holds a stand-in there.
    """

    text: str
    answers: list[tuple[int, int, int]]
    typed: list[tuple[int, str]]


def to_messages(record: Mapping, media: Media) -> list[dict]:
    """Chat messages of a record for a processor's chat template, used by training and inference alike.

    Human turns are cut at <image> and <video>; each piece of text is stripped and empty ones are left out, which is
    upstream's rule. System turns, answers and what tools return are kept to the character. An answer that calls tools
    has them as `tool_calls`, and no content where it says nothing else.

    Raises:
        UserError: an unknown role, or placeholders and media that do not match.
    """
    queues = {"image": iter(media.images), "video": iter([getattr(v, "frames", v) for v in media.videos])}
    kinds = {placeholder: kind for kind, placeholder in records.PLACEHOLDERS.items()}
    messages = []
    for turn in record["conversations"]:
        role = records.TOOL if turn["from"] == records.TOOL else records.ROLES.get(turn["from"])
        if role is None:
            raise UserError(f"unknown role {turn['from']!r}; roles are human, gpt, system and tool")
        if role in ("system", "assistant"):
            messages.append(_spoken(role, turn))
            continue
        content = []
        for piece in _SPLIT.split(turn["value"]):
            if piece in kinds:
                kind = kinds[piece]
                try:
                    content.append({"type": kind, kind: next(queues[kind])})
                except StopIteration:
                    raise UserError(f"there are more {piece} in the human turns than {kind} files") from None
            elif piece.strip():
                content.append({"type": "text", "text": piece if role == records.TOOL else piece.strip()})
        messages.append({"role": role, "content": content})
    for kind, queue in queues.items():
        if next(queue, queues) is not queues:
            raise UserError(f"there are more {kind} files than {records.PLACEHOLDERS[kind]} in the human turns")
    return messages


def _spoken(role: str, turn: Mapping) -> dict:
    calls = [{"type": "function", "function": dict(call)} for call in turn.get("tool_calls") or []]
    content = [] if calls and not turn["value"] else [{"type": "text", "text": turn["value"]}]
    return {"role": role, "content": content, **({"tool_calls": calls} if calls else {})}


def unopened(record: Mapping) -> Media:
    """The names of a record's media in the place of the media."""
    return Media(records.media_names(record, "image"), records.media_names(record, "video"))


def render(messages: Sequence[dict], processor, tools: Sequence[dict] | None = None) -> Rendered:
    """The text of a conversation by the processor's template, and where in it the answers are.

    An answer is all that the template writes for an assistant's turn, its tool calls included.

    Raises:
        UserError: the template changes other turns depending on an answer, so that its words cannot be told apart, or
            has no place for tools.
    """
    _check_tools(messages, tools, template_of(processor))
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    texts += _strings([tools, [message.get("tool_calls") for message in messages]])
    everything = "\n".join(texts)
    mark, stand_in = _unused_characters(everything)
    typed: list[str] = []
    control = control_tokens(processor.tokenizer, template_of(processor), *media_tokens(processor))
    if control.search(everything):
        messages = [_mark_typed(message, control, mark, typed) for message in messages]
        tools = _marked(tools, control, mark, typed)
    text = apply(messages, processor, tools)
    answers = _answer_spans(messages, text, stand_in, processor, tools)
    end = _end_token(template_of(processor), processor)
    spans = [(start, stop, stop + len(end) if text.startswith(end, stop) else stop) for start, stop in answers]
    return _unmark(text, spans, mark, typed, processor) if typed else Rendered(text, spans, [])


def _check_tools(messages: Sequence[dict], tools: Sequence[dict] | None, template: str) -> None:
    """Raises UserError where the template would leave out the tools, a call or what a tool returned."""
    uses = {"tools": bool(tools), "tool_calls": any(message.get("tool_calls") for message in messages),
            "a tool's turn": any(message["role"] == records.TOOL for message in messages)}
    if not any(uses.values()):
        return
    known = {"tools": r"\btools\b", "tool_calls": r"\btool_calls\b", "a tool's turn": r"""['"]tool['"]"""}
    missing = [name for name, used in uses.items() if used and not re.search(known[name], template)]
    if missing:
        raise UserError(f"the record has {' and '.join(missing)}, but the model's chat template has no tools; use a "
                        "model whose template has, or write the calls into the turns as text")


def _strings(value: object) -> list[str]:
    """All text in a JSON value."""
    if isinstance(value, Mapping):
        return [text for pair in value.items() for item in pair for text in _strings(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def media_tokens(processor) -> tuple[str, ...]:
    """The placeholder tokens of a processor."""
    names = (getattr(processor, name, None) for name in ("image_token", "video_token"))
    return tuple(name for name in names if name)


def _unused_characters(text: str) -> tuple[str, str]:
    """Two private-use characters that `text` does not hold."""
    if text.isascii():
        return "\ue000", "\ue001"
    free = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
    return next(free), next(free)


@lru_cache(maxsize=16)
def control_tokens(tokenizer, template: str, *media_tokens: str) -> re.Pattern:
    """Matches the special tokens that make structure: those in the template, of media, and of text ends."""
    ends = {tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token, *media_tokens} - {None}
    tokens = {
        token.content for token in tokenizer.added_tokens_decoder.values()
        if token.content in ends or (token.special and token.content in template)
    }
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or "(?!)")


_PROBE = "\ue001"


@lru_cache(maxsize=16)
def around_answer(template: str, processor) -> tuple[str, str]:
    """What the template writes before and behind the answer of a conversation without media."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": _PROBE}]}
    before, _, behind = apply([QUESTION, answer], processor).rpartition(_PROBE)
    return before, behind


@lru_cache(maxsize=16)
def _end_token(template: str, processor) -> str:
    """What the template writes directly behind an answer up to the special token that ends it; "" if none."""
    special = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
    alternatives = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    found = re.match(rf"\s*(?:{alternatives})", around_answer(template, processor)[1])
    return found[0] if special and found else ""


def _answer_spans(messages: Sequence[dict], text: str, stand_in: str, processor,
                  tools: Sequence[dict] | None = None) -> list[tuple[int, int]]:
    """(start, end) of each answer's words and tool calls in the rendered `text`."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return []

    def without(hidden: Sequence[int]) -> str:
        """The rendered text with a stand-in for the answers of the turns `hidden`."""
        return apply([
            {"role": message["role"], "content": [{"type": "text", "text": stand_in}]} if i in hidden else message
            for i, message in enumerate(messages)
        ], processor, tools)

    pieces = without(turns).split(stand_in)
    words = ["".join(part["text"] for part in messages[i]["content"]) for i in turns]
    if len(pieces) == len(turns) + 1:
        joined, spans = pieces[0], []
        for word, piece in zip(words, pieces[1:], strict=True):
            spans.append((len(joined), len(joined) + len(word)))
            joined += word + piece
        if joined == text:
            return spans
    # The template changes answers (strips them, moves their reasoning, writes tool calls): look at one at a time.
    return [_differing(text, *without([turn]).partition(stand_in)[::2]) for turn in turns]


def _differing(text: str, head: str, tail: str) -> tuple[int, int]:
    """The part of `text` that is neither common with `head` from the start nor equal to `tail` at the end."""
    low, high = 0, min(len(head), len(text))
    while low < high:  # length of the common beginning, by bisection
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text.startswith(head[:middle]) else (low, middle - 1)
    if not text.endswith(tail) or len(text) - len(tail) < low:
        raise UserError("the chat template renders other turns differently depending on an answer; "
                        "split this conversation into records of one question and one answer")
    return low, len(text) - len(tail)


def _mark_typed(message: dict, control: re.Pattern, mark: str, typed: list[str]) -> dict:
    """The message with every typed control token as mark, number, mark; the tokens are added to `typed`."""

    content = [
        {**part, "text": _marked(part["text"], control, mark, typed)} if part["type"] == "text" else part
        for part in message["content"]
    ]
    calls = {"tool_calls": _marked(message["tool_calls"], control, mark, typed)} if "tool_calls" in message else {}
    return {**message, "content": content, **calls}


def _marked(value: object, control: re.Pattern, mark: str, typed: list[str]) -> object:
    """A JSON value with every control token in its texts marked."""
    def replace(match: re.Match) -> str:
        typed.append(match[0])
        return f"{mark}{len(typed) - 1}{mark}"

    if isinstance(value, str):
        return control.sub(replace, value)
    if isinstance(value, Mapping):
        return {control.sub(replace, key): _marked(item, control, mark, typed) for key, item in value.items()}
    return [_marked(item, control, mark, typed) for item in value] if isinstance(value, list | tuple) else value


def _unmark(text: str, spans: list[tuple[int, int, int]], mark: str, typed: list[str], processor) -> Rendered:
    """Put a stand-in token, a border that the tokenizer never crosses, where a control token was typed."""
    border = processor.tokenizer.eos_token
    pieces, places, ends, shifts, last, shift = [], [], [], [0], 0, 0
    for match in re.finditer(f"{mark}(\\d+){mark}", text):
        pieces += [text[last : match.start()], border]
        places.append((match.start() + shift, typed[int(match[1])]))
        shift += len(border) - len(match[0])
        last = match.end()
        ends.append(last)
        shifts.append(shift)
    moved = [tuple(place + shifts[bisect_right(ends, place)] for place in span) for span in spans]
    return Rendered("".join(pieces) + text[last:], moved, places)
