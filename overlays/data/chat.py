"""Records -> token ids and labels, through the processor's own chat template; `rendering` gives the text.

Control tokens that are only typed text are tokenised as the characters they consist of. Labels are on the assistant's
words and their end token.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from overlays.data import media as media_module
from overlays.data import rasters, records
from overlays.data.media import Media, Reader, open_media
from overlays.data.rendering import (
    Rendered,
    around_answer,
    control_tokens,
    media_tokens,
    render,
    to_messages,
    unopened,
)
from overlays.data.template import any_answer, template_of
from overlays.data.thinking import thinking_of
from overlays.errors import UserError

IGNORE = -100
_MEDIA_KEYS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


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
    rendered = render([*messages[: last + 1], any_answer(thinking_of(processor))], processor, record.get("tools"))
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
    return render(to_messages(record, unopened(record)), processor, record.get("tools")).text


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
    special, turn_ids = _turn_tokens(template_of(processor), processor)
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
    control = control_tokens(processor.tokenizer, template, *media_tokens(processor))
    turns = {*control.findall("".join(around_answer(template, processor))), processor.tokenizer.eos_token}
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


def count_tokens(record: Mapping, processor, media_root: str | Path, reader: Reader | str = "pyav") -> tuple[int, int]:
    """Length of the sample that `encode` would give, and how many tokens are of images and videos.

    Of the media only the headers are read.

    Raises:
        UserError: a medium is missing, cannot be read, or does not match its placeholder.
    """
    rendered = render(to_messages(record, unopened(record)), processor, record.get("tools"))
    tokenizer, extra, visual = processor.tokenizer, 0, 0
    for name, window in zip(records.media_names(record, "image"), records.windows(record), strict=True):
        path = records.media_file(media_root, name)
        merge = processor.image_processor.merge_size**2
        tokens = media_module.image_patches(path, processor.image_processor, window) // merge
        visual, extra = visual + tokens, extra + tokens - 1
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
        tokens = height * width // video.merge_size**2
        visual, extra = visual + frames * tokens, extra + frames * (tokens - 1)
    typed = sum(len(_plain_ids(tokenizer, token)) - 1 for _, token in rendered.typed)
    return len(tokenizer("".join(pieces))["input_ids"]) + extra + typed, visual
