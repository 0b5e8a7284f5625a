"""Tiny Qwen-VL models: each family's real architecture in small, random weights, own tokenizer, built in seconds.

What `build` writes is loaded by `AutoProcessor` and `AutoModelForImageTextToText` like a released checkpoint. It is what
every launcher trains where no GPU is found, and what the tests run on.
"""

import ast
import hashlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEED = 0
BPE_SIZE = 2000  # byte-level tokens before the added ones
VOCABULARY = 2048  # rows of the embedding table, as in Qwen more than there are tokens

# The sizes, all in one place. A head is 32 wide, so rotary embeddings have 16 frequencies for time, height and width.
TEXT = dict(
    hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2,
    max_position_embeddings=32768, rms_norm_eps=1e-6, initializer_range=0.02,
)
HEAD = 32
VISION = dict(hidden_size=192, intermediate_size=512, depth=4, num_heads=6, in_channels=3)
CHUNKED = dict(rope_type="default", mrope_section=[4, 6, 6])  # time, height, width in a row
INTERLEAVED = dict(rope_type="default", mrope_section=[6, 5, 5], mrope_interleaved=True)
QWEN3_VISION = VISION | dict(
    patch_size=16, hidden_act="gelu_pytorch_tanh", num_position_embeddings=256, out_hidden_size=TEXT["hidden_size"]
)
# family -> (text config, vision config); what is not named keeps the family's default
FAMILIES = {
    "qwen2_vl": (
        TEXT | dict(rope_parameters=CHUNKED | dict(rope_theta=1e6)),
        dict(
            embed_dim=VISION["hidden_size"], hidden_size=TEXT["hidden_size"], depth=VISION["depth"], mlp_ratio=3,
            num_heads=VISION["num_heads"], in_channels=3, patch_size=14,
        ),
    ),
    "qwen2_5_vl": (
        TEXT | dict(rope_parameters=CHUNKED | dict(rope_theta=1e6)),
        VISION | dict(
            patch_size=14, window_size=112, fullatt_block_indexes=[1, 3], tokens_per_second=2,
            out_hidden_size=TEXT["hidden_size"],
        ),
    ),
    "qwen3_vl": (
        TEXT | dict(head_dim=HEAD, rope_parameters=INTERLEAVED | dict(rope_theta=5e6)),
        QWEN3_VISION | dict(deepstack_visual_indexes=[0, 1, 2]),
    ),
    "qwen3_vl_moe": (
        TEXT | dict(
            head_dim=HEAD, rope_parameters=INTERLEAVED | dict(rope_theta=5e6), num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=256, decoder_sparse_step=1,
        ),
        QWEN3_VISION | dict(deepstack_visual_indexes=[0, 1, 2]),
    ),
    "qwen3_5": (
        TEXT | dict(
            head_dim=64, num_attention_heads=4, linear_num_key_heads=4, linear_num_value_heads=8,
            linear_key_head_dim=32, linear_value_head_dim=32,
            layer_types=["linear_attention"] * 3 + ["full_attention"],
            rope_parameters=INTERLEAVED | dict(rope_theta=1e7, partial_rotary_factor=0.5),
        ),
        QWEN3_VISION,
    ),
}

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)
ADDED = ("<tool_call>", "</tool_call>", "<think>", "</think>")  # one token each, kept when special ones are skipped
DEFAULT_SYSTEM = "You are a helpful assistant."

# Qwen's chat format: every turn "<|im_start|>role\n...<|im_end|>\n", media as a pad token between start and end marks.
TEMPLATE = """\
{%- macro words(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
@SYSTEM@
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
@ANSWER@
{{- words(message.content) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
@PROMPT@
{%- endif -%}"""
SYSTEM = (
    "{%- if messages and messages[0].role != 'system' -%}"
    f"{{{{- '<|im_start|>system\\n{DEFAULT_SYSTEM}<|im_end|>\\n' -}}}}"
    "{%- endif -%}"
)
NO_THOUGHT = "{{- '<think>\\n\\n</think>\\n\\n' -}}"


def chat_template(family: str) -> str:
    """Jinja chat template in Qwen's format.

    Qwen2 and 2.5 put a default system turn first where none is given. Qwen3.5 answers after an empty block of thought,
    which the generation prompt opens and closes; only the last answer of a conversation keeps it.
    """
    system = SYSTEM if family in ("qwen2_vl", "qwen2_5_vl") else ""
    answer = prompt = ""
    if family == "qwen3_5":
        answer = "{%- if message.role == 'assistant' and loop.last -%}" + NO_THOUGHT + "{%- endif -%}"
        prompt = NO_THOUGHT
    filled = TEMPLATE.replace("@SYSTEM@", system).replace("@ANSWER@", answer).replace("@PROMPT@", prompt)
    return re.sub(r"\n{2,}", "\n", filled)


def corpus() -> list[str]:
    """Texts that the tokenizer is trained on: all string literals of the domains, file by file in sorted order.

    They hold the questions, answers and explanations of every domain in English and Chinese and nothing of any data
    set. Code around them may change without changing the tokenizer.
    """
    texts = []
    for path in sorted((ROOT / "overlays" / "domains").rglob("*.py"), key=lambda path: path.as_posix()):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is str]
    return texts


def fingerprint(family: str) -> str:
    """Hexadecimal digest of all that decides what `build(family)` writes: this module and the corpus."""
    return hashlib.sha256(
        json.dumps([family, Path(__file__).read_text(encoding="utf-8"), corpus()]).encode()
    ).hexdigest()


def is_current(family: str, folder: Path) -> bool:
    """Whether `folder` holds what `build(family)` would write now."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return config.get("tiny_fingerprint") == fingerprint(family)


def _tokenizer(family: str):
    """Byte-level BPE with Qwen's pre-tokenizer (every digit alone), special tokens after the vocabulary."""
    from transformers import AutoTokenizer  # noqa: F401  (resolves the classes below)
