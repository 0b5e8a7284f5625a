"""Records -> chat messages -> token ids and labels, through the processor's own chat template.

What is text stays text. A control token of the template (<|im_end|>, <|image_pad|>, ...) that somebody typed into a
question or an answer is tokenised as the characters it consists of, so that only the template opens and closes turns.
Tokens that a template does not use for structure (<think>, <|box_start|>, ...) keep their meaning.

Labels come from the template's structure: the conversation is rendered once as it is and once with a stand-in for
every answer, and what differs is the answer. Whatever the words are, they cannot be mistaken for structure.
"""

import logging
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from overlays.data import media as media_module
from overlays.data import rasters, records
from overlays.data.media import Media, Reader, open_media
from overlays.errors import UserError

IGNORE = -100
TEMPLATE_SECONDS, TEMPLATE_BYTES = 10, 1 << 30
_CHECKED: set[str] = set()  # templates that `check_template` has let through
_SPLIT = re.compile("(" + "|".join(records.PLACEHOLDERS.values()) + ")")
_MEDIA_KEYS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


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


def encode(record: Mapping, processor, media_root: str | Path, reader: Reader | str = "pyav") -> dict:
    """A training sample.

    Returns:
        input_ids, labels (-100 but at assistant words and their end token), mm_token_type_ids (0 text, 1 image,
        2 video), each (L,) int64; where present pixel_values (P, D) and image_grid_thw (n, 3), pixel_values_videos
        and video_grid_thw (m, 3), second_per_grid_ts (m,).

    Raises:
        UserError: a medium cannot be opened or does not match its placeholder.
    """
    media = open_media(record, media_root, processor, reader)
    return encode_messages(to_messages(record, media), media, processor, record.get("tools"))


def encode_prompt(record: Mapping, processor, media_root: str | Path, reader: Reader | str = "pyav") -> dict:
    """A sample for generation: everything up to the last turn of a human or tool, then the answer's header.

    The ids are those that `encode` has before the last answer's first label, where that answer has the checkpoint's
    form (see `thinking_of`). A reference answer in the record is not read. Same keys, without labels.

    Raises:
        UserError: as `encode`, and where there is no human turn.
    """
    media = open_media(record, media_root, processor, reader)
    messages = to_messages(record, media)
    last = max((i for i, message in enumerate(messages) if message["role"] in ("user", records.TOOL)), default=None)
    if last is None:
        raise UserError("there is no human turn to answer")
    rendered = render([*messages[: last + 1], _any_answer(thinking_of(processor))], processor, record.get("tools"))
    start = rendered.answers[-1][0]
    prompt = Rendered(rendered.text[:start], [], [item for item in rendered.typed if item[0] < start])
    sample = _tokenize(prompt, media, processor)
    del sample["labels"]
    return sample


def encode_messages(messages: Sequence[dict], media: Media, processor, tools: Sequence[dict] | None = None) -> dict:
    """`encode` for messages whose media are open."""
    return _tokenize(render(messages, processor, tools), media, processor)


def prompt_text(record: Mapping, processor) -> str:
    """The rendered conversation of a record with one placeholder token for each medium; opens no file."""
    return render(to_messages(record, _unopened(record)), processor, record.get("tools")).text


def _unopened(record: Mapping) -> Media:
    return Media(records.media_names(record, "image"), records.media_names(record, "video"))


# ---- reasoning before the answer

# Stands before a checkpoint's chat template: the form of its prompts, for templates with that switch also the default.
_FORM = "{{%- set enable_thinking = enable_thinking | default({}) -%}}\n"
_FORMS = {True: _FORM.format("true"), False: _FORM.format("false")}
_QUESTION = {"role": "user", "content": [{"type": "text", "text": "?"}]}


def thinking_of(processor) -> bool | None:
    """The form of a checkpoint's prompts: whether they leave the model room to reason before it answers.

    That is what `set_thinking` stored with the checkpoint, else what its template's own generation prompt does. None
    where the template writes the same before an answer with and without reasoning: there is one form only.
    """
    return _thinking(_template(processor), processor)


def set_thinking(processor, thinking: str) -> None:
    """Choose the form of a checkpoint's prompts; `save_pretrained` of the processor stores it in the chat template.

    Args:
        thinking: "on", "off", or "auto" for the form that the checkpoint has.

    Raises:
        UserError: on or off, and the template has one form only.
    """
    if thinking == "auto":
        return
    if thinking_of(processor) is None:
        raise UserError(f"--thinking {thinking}: the chat template of this model has no block of reasoning; "
                        "use --thinking auto")
    template = _FORMS[thinking == "on"] + _without_form(_template(processor))
    whole = processor.chat_template
    processor.chat_template = {**whole, "default": template} if isinstance(whole, dict) else template


def fit_thinking(processor, thinking: str, training: Iterable[Mapping]) -> str:
    """Choose the form of the prompts that a training run's checkpoints will have.

    Args:
        thinking: "on", "off", or "auto" for the form of more than half of the training records' last answers.
        training: the training records.

    Returns:
        A sentence for the user; "" where the template has one form only.

    Raises:
        UserError: on or off, and the template has one form only or no last answer has that form.
    """
    if thinking_of(processor) is None:
        set_thinking(processor, thinking)
        return ""
    answers = [reasons(record) for record in training]
    count = {"on": sum(answers), "off": len(answers) - sum(answers)}
    if thinking != "auto" and not count[thinking]:
        kind = "with" if thinking == "on" else "without"
        raise UserError(f"--thinking {thinking}: none of the {len(answers)} training records has a last answer {kind} "
                        "reasoning between <think> and </think>, so no prompt would be as in training; "
                        "use --thinking auto")
    chosen = ("on" if count["on"] > count["off"] else "off") if thinking == "auto" else thinking
    set_thinking(processor, chosen)
    sentence = f"thinking {chosen}: {count['on']} of {len(answers)} training records have reasoning in the last answer"
    if all(count.values()):
        sentence += "; the others are asked in a form that they were not trained in (--thinking on or off chooses)"
    template = _template(processor)
    if _own_prompt(template, processor) != _opening(template, processor, chosen == "on"):
        sentence += "; the template has no switch for that: other programs than this one will ask in another form"
    return sentence


def reasons(record: Mapping) -> bool:
    """Whether the last answer of a record has words of reasoning before </think>."""
    answers = [message for message in to_messages(record, _unopened(record)) if message["role"] == "assistant"]
    words = "".join(part.get("text", "") for part in answers[-1]["content"]) if answers else ""
    thought, closed, _ = words.partition("</think>")
    return bool(closed and thought.rpartition("<think>")[2].strip())


def _any_answer(thinking: bool | None) -> dict:
    words = "<think>\n-\n</think>\n\n-" if thinking else "-"
    return {"role": "assistant", "content": [{"type": "text", "text": words}]}


def _without_form(template: str) -> str:
    for form in _FORMS.values():
        template = template.removeprefix(form)
    return template


@lru_cache(maxsize=16)
def _thinking(template: str, processor) -> bool | None:
    if _opening(template, processor, True) == _opening(template, processor, False):
        return None
    stored = next((form for form, line in _FORMS.items() if template.startswith(line)), None)
    return _own_prompt(template, processor) == _opening(template, processor, True) if stored is None else stored


@lru_cache(maxsize=16)
def _opening(template: str, processor, thinking: bool) -> str:
    """What training shows before the words of an answer with or without reasoning."""
    rendered = render([_QUESTION, _any_answer(thinking)], processor)
    return rendered.text[: rendered.answers[0][0]]


def _own_prompt(template: str, processor) -> str:
    """The template's own generation prompt."""
    return _apply([_QUESTION], processor, add_generation_prompt=True)


# ---- text


def render(messages: Sequence[dict], processor, tools: Sequence[dict] | None = None) -> Rendered:
    """The text of a conversation by the processor's template, and where in it the answers are.

    An answer is all that the template writes for an assistant's turn, its tool calls included.

    Raises:
        UserError: the template changes other turns depending on an answer, so that its words cannot be told apart, or
            has no place for tools.
    """
    _check_tools(messages, tools, _template(processor))
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    texts += _strings([tools, [message.get("tool_calls") for message in messages]])
    everything = "\n".join(texts)
    mark, stand_in = _unused_characters(everything)
    typed: list[str] = []
    control = _control_tokens(processor.tokenizer, _template(processor), *_media_tokens(processor))
    if control.search(everything):
        messages = [_mark_typed(message, control, mark, typed) for message in messages]
        tools = _marked(tools, control, mark, typed)
    text = _apply(messages, processor, tools)
    answers = _answer_spans(messages, text, stand_in, processor, tools)
    end = _end_token(_template(processor), processor)
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


def _template(processor) -> str:
    template = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise UserError("the processor has no chat template; copy chat_template.jinja from the base model")
    return template


def _media_tokens(processor) -> tuple[str, ...]:
    names = (getattr(processor, name, None) for name in ("image_token", "video_token"))
    return tuple(name for name in names if name)


def _apply(messages: Sequence[dict], processor, tools: Sequence[dict] | None = None, **options) -> str:
    if tools:
        options["tools"] = tools
    try:
        return processor.apply_chat_template(messages, tokenize=False, **options)
    except MemoryError:
        raise
    except Exception as error:  # a template is a program: it raises what it likes
        raise UserError(f"the chat template refuses this conversation: {' '.join(str(error).split())}") from None


def check_template(processor) -> None:
    """Render a short conversation in a process of its own, which may take TEMPLATE_SECONDS of CPU and TEMPLATE_BYTES.

    A process that ends in another way, killed or hanging after the fork, says nothing about the template.

    Raises:
        UserError: the chat template takes more, as one with nested loops or long repeated text does.
    """
    if not hasattr(os, "fork") or not processor.chat_template or _template(processor) in _CHECKED:
        return
    import resource
    import signal

    child = os.fork()
    if child == 0:
        status = 0
        try:
            used = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0]) \
                if Path("/proc/self/statm").is_file() else None
            if used:
                resource.setrlimit(resource.RLIMIT_AS, (used + TEMPLATE_BYTES, resource.RLIM_INFINITY))
            for number in (signal.SIGALRM, signal.SIGXCPU):
                signal.signal(number, signal.SIG_DFL)
            signal.alarm(10 * TEMPLATE_SECONDS)
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (TEMPLATE_SECONDS, hard))
            _apply([_QUESTION, _any_answer(None)], processor)
        except MemoryError:
            status = 1
        except BaseException:  # said where a conversation is rendered
            pass
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status in (1, -signal.SIGXCPU):
        raise UserError(f"the chat template of this model takes more than {TEMPLATE_SECONDS} seconds of CPU or "
                        f"{TEMPLATE_BYTES >> 20} MB for one question: copy the base model's chat_template.jinja")
    if status:
        logging.getLogger(__name__).warning("the check of the chat template ended by signal %d: it is left out",
                                            -status)
    else:
        _CHECKED.add(_template(processor))


def _unused_characters(text: str) -> tuple[str, str]:
    """Two private-use characters that `text` does not hold."""
    if text.isascii():
        return "\ue000", "\ue001"
    free = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
    return next(free), next(free)


@lru_cache(maxsize=16)
def _control_tokens(tokenizer, template: str, *media_tokens: str) -> re.Pattern:
    """Matches the special tokens that make structure: those in the template, of media, and of text ends."""
    ends = {tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token, *media_tokens} - {None}
    tokens = {
        token.content for token in tokenizer.added_tokens_decoder.values()
        if token.content in ends or (token.special and token.content in template)
    }
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or "(?!)")


_PROBE = "\ue001"


@lru_cache(maxsize=16)
def _probe(template: str, processor) -> tuple[str, str]:
    """What the template writes before and behind the answer of a conversation without media."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": _PROBE}]}
    before, _, behind = _apply([_QUESTION, answer], processor).rpartition(_PROBE)
    return before, behind


@lru_cache(maxsize=16)
def _end_token(template: str, processor) -> str:
    """What the template writes directly behind an answer up to the special token that ends it; "" if none."""
    special = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
    alternatives = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    found = re.match(rf"\s*(?:{alternatives})", _probe(template, processor)[1])
    return found[0] if special and found else ""


def _answer_spans(messages: Sequence[dict], text: str, stand_in: str, processor,
                  tools: Sequence[dict] | None = None) -> list[tuple[int, int]]:
    """(start, end) of each answer's words and tool calls in the rendered `text`."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return []

    def without(hidden: Sequence[int]) -> str:
        """The rendered text with a stand-in for the answers of the turns `hidden`."""
        return _apply([
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


# ---- tokens


def _tokenize(rendered: Rendered, media: Media, processor) -> dict:
    """Tokens, labels and pixels of a rendered conversation; the processor expands the placeholders."""
    options = {}
    if media.videos:  # sampled and resized when they were opened
        options = {"videos": [clip.frames for clip in media.videos], "videos_kwargs": {
            "do_sample_frames": False, "do_resize": False, "video_metadata": [clip.metadata for clip in media.videos],
        }}
    if any(isinstance(image, torch.Tensor) for image in media.images):
        options["images_kwargs"] = rasters.image_options()
    try:
        output = processor(
            text=[rendered.text], images=list(media.images) or None, return_text_replacement_offsets=True,
            return_mm_token_type_ids=False, **options,
        )
    except ValueError as error:
        raise UserError(f"the processor refuses the media: {' '.join(str(error).split())}") from None
    # torch.tensor of a list of 4,096 takes 0.8 ms, this a tenth of it
    ids = np.fromiter(output["input_ids"][0], dtype=np.int64, count=len(output["input_ids"][0]))
    moves = (output.get("text_replacement_offsets") or [[]])[0]
    spans, places = _by_anchors(rendered, ids, processor) or _by_offsets(rendered, moves, processor)
    if rendered.typed:
        ids, spans = _as_text(ids, spans, places, rendered.typed, processor.tokenizer)
    sample = {"input_ids": torch.from_numpy(ids)}
    sample["labels"] = torch.full_like(sample["input_ids"], IGNORE)
    for first, last in spans:
        sample["labels"][first:last] = sample["input_ids"][first:last]
    kinds = torch.zeros_like(sample["input_ids"])
    if media.images:
        kinds[sample["input_ids"] == processor.image_token_id] = 1
    if media.videos:
        kinds[sample["input_ids"] == processor.video_token_id] = 2
    sample["mm_token_type_ids"] = kinds
    for key in _MEDIA_KEYS:
        if output.get(key) is not None:
            sample[key] = torch.as_tensor(output[key])
    return sample


def _by_anchors(rendered: Rendered, ids: np.ndarray, processor) -> tuple[list, list] | None:
    """Token spans of the answers and token places of typed control tokens, from the special tokens beside them.

    The n-th end token or turn opener in the text is the n-th in `ids`, and the tokenizer never merges across one.
    None where that does not settle it: no end token, or the first words merge with the header before them.
    """
    if not rendered.answers and not rendered.typed:
        return [], []
    special, turn_ids = _turn_tokens(_template(processor), processor)
    found = list(special.finditer(rendered.text))
    at = np.flatnonzero(np.isin(ids, turn_ids))
    if len(found) != len(at):
        return None
    starts, ends = [match.start() for match in found], [match.end() for match in found]
    spans = []
    for start, stop, full in rendered.answers:
        before, behind = bisect_right(ends, start) - 1, bisect_left(starts, stop)
        if before < 0 or behind == len(found) or ends[behind] != full:
            return None
        header = _header_ids(processor.tokenizer, rendered.text[ends[before] : start])
        first = int(at[before]) + 1 + len(header)
        if tuple(ids[first - len(header) : first]) != header:
            return None
        spans.append((first, int(at[behind]) + 1))
    return spans, [int(at[bisect_left(starts, place)]) for place, _ in rendered.typed]


@lru_cache(maxsize=16)
def _turn_tokens(template: str, processor) -> tuple[re.Pattern, np.ndarray]:
    """Pattern and ids of the special tokens that make turns; those of media multiply when these are expanded."""
    control = _control_tokens(processor.tokenizer, template, *_media_tokens(processor))
    turns = {*control.findall("".join(_probe(template, processor))), processor.tokenizer.eos_token}
    return re.compile("|".join(map(re.escape, turns))), np.array(processor.tokenizer.convert_tokens_to_ids(list(turns)))


@lru_cache(maxsize=64)
def _header_ids(tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()


def _by_offsets(rendered: Rendered, moves: Sequence[dict], processor) -> tuple[list, list]:
    """The same by the characters that each token covers: always right, at 1 ms for 4,000 tokens."""
    pieces, borders, gained, last = [], [], [0], 0
    for move in moves:  # placeholders and what the processor put in their place
        start, stop = move["span"]
        pieces += [rendered.text[last:start], move["replacement"]]
        borders.append(stop)
        gained.append(move["new_span"][1] - stop)
        last = stop
    text = "".join(pieces) + rendered.text[last:]
    offsets = processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]

    def expanded(place: int) -> int:
        return place + gained[bisect_right(borders, place)]

    spans = [_tokens_between(offsets, expanded(start), expanded(stop)) for start, _, stop in rendered.answers]
    return spans, [bisect_left(offsets, (expanded(place),)) for place, _ in rendered.typed]


def _tokens_between(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """[first, last) of the tokens that hold a character of [start, stop), one that begins before it included.

    Both ends of `offsets` ascend, so this is bisection: no loop over the tokens.
    """
    first = bisect_right(offsets, start, key=lambda pair: pair[1])
    return first, max(first, bisect_left(offsets, stop, key=lambda pair: pair[0]))


def _as_text(ids: np.ndarray, spans: list[tuple[int, int]], places: list[int], typed: list[tuple[int, str]],
             tokenizer) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Replace the stand-ins at token `places` by the tokens of the characters that were typed; spans move along."""
    pieces, shifts, last = [], [0], 0
    for place, (_, token) in zip(places, typed, strict=True):
        plain = _plain_ids(tokenizer, token)
        pieces += [ids[last:place], np.array(plain, dtype=np.int64)]
        shifts.append(shifts[-1] + len(plain) - 1)
        last = place + 1
    moved = [tuple(end + shifts[bisect_left(places, end)] for end in span) for span in spans]
    return np.concatenate([*pieces, ids[last:]]), moved


def _plain_ids(tokenizer, token: str) -> list[int]:
    """Ids of a special token's characters as ordinary text."""
    ids = tokenizer.encode(token, add_special_tokens=False, split_special_tokens=True)
    if tokenizer.convert_tokens_to_ids(token) in ids:
        raise UserError(f"this tokenizer cannot write {token!r} as text; remove it from the record")
    return ids


# ---- lengths


def count_tokens(record: Mapping, processor, media_root: str | Path, reader: Reader | str = "pyav") -> int:
    """Length of the sample that `encode` would give, from the headers of its media alone.

    Raises:
        UserError: a medium is missing, cannot be read, or does not match its placeholder.
    """
    rendered = render(to_messages(record, _unopened(record)), processor, record.get("tools"))
    tokenizer, extra = processor.tokenizer, 0
    for name, window in zip(records.media_names(record, "image"), records.windows(record), strict=True):
        path = records.media_file(media_root, name)
        merge = processor.image_processor.merge_size**2
        extra += media_module.image_patches(path, processor.image_processor, window) // merge - 1
    pieces = [rendered.text]
    for name, segment in zip(records.media_names(record, "video"), records.video_segments(record), strict=True):
        video = processor.video_processor
        path = records.media_file(media_root, name)
        (frames, height, width), metadata = media_module.video_grid(path, video, reader, segment)
        # Each frame as one token, with the timestamps that some families write between frames; the rest is counted.
        short = {"video_grid_thw": torch.tensor([[frames, video.merge_size, video.merge_size]]),
                 "video_metadata": [metadata]}
        before, _, after = pieces.pop().partition(processor.video_token)
        pieces += [before, processor.replace_video_token(short, 0), after]
        extra += frames * (height * width // video.merge_size**2 - 1)
    typed = sum(len(_plain_ids(tokenizer, token)) - 1 for _, token in rendered.typed)
    return len(tokenizer("".join(pieces))["input_ids"]) + extra + typed
