"""A processor with the token ids that upstream's code has written into it (those of Qwen's own tokenizer)."""

import copy
import json

from tokenizers import Tokenizer

from overlays.model import parts, tiny

FIRST, ASSISTANT = 151643, 77091
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)


def qwen_numbered_tokenizer(family: str):
    """The tiny tokenizer with Qwen's ids for special tokens and for the word "assistant", which is one token."""
    tokenizer = tiny.build_tokenizer(family)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token: FIRST + number for number, token in enumerate(SPECIAL)}
    special |= {"<think>": 151667, "</think>": 151668}
    chain = ["assistant"[:length] for length in range(2, 10)]
    plain = [token for token in state["model"]["vocab"] if token not in special and token != "assistant"]
    plain += [token for token in chain[:-1] if token not in plain]
    vocabulary = {token: number for number, token in enumerate(plain)} | {"assistant": ASSISTANT}
    taken = set(vocabulary.values())
    vocabulary |= {f"unused {number}": number for number in range(FIRST) if number not in taken}
    state["model"]["vocab"] = vocabulary
    first_merges = [["assistant"[: length - 1], "assistant"[length - 1]] for length in range(2, 10)]
    state["model"]["merges"] = first_merges + [pair for pair in state["model"]["merges"] if pair not in first_merges]
    state["added_tokens"] = sorted(
        ({**token, "id": special[token["content"]]} for token in state["added_tokens"]), key=lambda token: token["id"]
    )
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


def qwen_numbered(family: str, config):
    """(processor, position function) of a tiny family with Qwen's own token ids.

    Args:
        config: the tiny model's own, which is left as it is.
    """
    processor = tiny.build_processor(family)
    processor.tokenizer = qwen_numbered_tokenizer(family)
    config = copy.deepcopy(config)
    for name in ("image", "video"):
        number = processor.tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>")
        setattr(config, f"{name}_token_id", number)
        setattr(processor, f"{name}_token_id", number)
    for name in ("start", "end"):
        number = processor.tokenizer.convert_tokens_to_ids(f"<|vision_{name}|>")
        setattr(config, f"vision_{name}_token_id", number)
        if hasattr(processor, f"vision_{name}_token_id"):
            setattr(processor, f"vision_{name}_token_id", number)
    return processor, parts.position_function(config)
