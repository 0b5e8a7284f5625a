"""Tiny Qwen-VL models: each family's real architecture in small, with random weights and its own tokenizer.

They carry the launchers on a machine without GPU and the tests. Their sizes stand in `overlays.families`.
"""

import ast
import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from overlays import families
from overlays.errors import UserError, run
from overlays.families import FAMILIES
from overlays.files import atomic_path, read_json
from overlays.flags import Parser
from overlays.paths import MODELS, PACKAGE

WORD_COUNTS = Path(__file__).with_name("tiny_words.json")  # scripts/make_tiny_model.py --count-words writes it
VOCABULARY = 8000  # byte-level BPE tokens at most, special ones not counted: more than the corpus has words
SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = ("<think>", "</think>")  # whole tokens that stay visible when special tokens are left out
# Qwen's format: ChatML turns, an image or video between vision marks.
CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
SYSTEM
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- set words = render(message.content) -%}
TURN
{{- words + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}
PROMPT
{%- endif -%}
"""
SYSTEM = """\
{%- if messages and messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
"""
QUESTIONS = """\
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
"""
THOUGHT = """\
{%- if message.role == 'assistant' -%}
{%- set thought = '' -%}
{%- if '</think>' in words -%}
{%- set thought = words.split('</think>')[0].split('<think>')[-1] | trim -%}
{%- set words = words.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if loop.index0 > ns.last -%}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""
OPENING = """\
{%- if enable_thinking is defined and enable_thinking -%}{{- '<think>\\n' -}}
{%- else -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
"""


def chat_template(family: str) -> str:
    """The family's chat template.

    Qwen2 and 2.5 add a system turn of their own. Families with reasoning write a block of it, empty without, before the
    answers to the last question, and leave out that of earlier ones.
    """
    row = FAMILIES[family]
    old, thinks = row.processor != "Qwen3VLProcessor", row.thinking
    return (
        CHAT_TEMPLATE.replace("SYSTEM\n", SYSTEM if old else QUESTIONS if thinks else "")
        .replace("TURN\n", THOUGHT if thinks else "").replace("PROMPT\n", OPENING if thinks else "")
    )


def domain_strings() -> list[str]:
    """Every string in the domains' code but its docstrings, at a text's start and inside one.

    These are their questions, answers and messages, English and Chinese, and nothing of any data set.
    """
    texts = []
    files = [file for folder in ("domains", "samples") for file in (PACKAGE / folder).rglob("*.py")]
    for file in sorted(files, key=lambda file: file.as_posix()):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone)
        texts += [node.value for node in constants if isinstance(node.value, str)]
    return texts + [" " + text for text in texts]


def count_words(texts: list[str]) -> dict[str, int]:
    """How often each word of Qwen's pre-tokenizer stands in `texts`, most frequent first."""
    from tokenizers.decoders import ByteLevel
    from transformers import Qwen2Tokenizer

    backend = Qwen2Tokenizer().backend_tokenizer
    split, decoder = backend.pre_tokenizer.pre_tokenize_str, ByteLevel()
    counts = Counter(word for text in texts for word, _ in split(backend.normalizer.normalize_str(text)))
    return {decoder.decode([word]): counts[word] for word in sorted(counts, key=lambda word: (-counts[word], word))}


def corpus() -> list[str]:
    """What the tokenizer is trained on: the words of WORD_COUNTS, each as often as it was counted.

    Each becomes one token, as in the real tokenizers. The counts are kept in a file because one token more draws every
    weight anew: a message that changes in the code must not change what a tiny model scores.
    """
    counts = json.loads(WORD_COUNTS.read_text(encoding="utf-8"))
    return [word for word, count in counts.items() for _ in range(count)]


def fingerprint(family: str) -> str:
    """Hexadecimal digest of what decides the content of a tiny `family`: this module, the families and the corpus."""
    modules = [Path(file).read_text(encoding="utf-8") for file in (__file__, families.__file__)]
    return hashlib.sha256(json.dumps([family, *modules, *corpus()]).encode()).hexdigest()


def is_current(family: str, folder: str | Path) -> bool:
    """Whether `folder` holds what `build` would write there now."""
    try:
        config = read_json(Path(folder) / "config.json")
    except UserError:
        return False
    return config.get("tiny_fingerprint") == fingerprint(family)


def build_tokenizer(family: str):
    """Byte-level BPE in Qwen's pipeline (single digits, every byte encodable) with Qwen's special tokens."""
    from transformers import Qwen2Tokenizer

    trained = Qwen2Tokenizer().train_new_from_iterator(corpus(), VOCABULARY, show_progress=False)
    trained.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                                "additional_special_tokens": list(SPECIAL)})
    trained.add_tokens(list(WORDS))
    trained.model_max_length = 32768
    return trained


def build_processor(family: str):
    """Tokenizer, image and video processors and chat template as the family's own processor class."""
    import transformers

    row = FAMILIES[family]
    patch = row.tiny_vision["patch_size"]
    geometry = dict(patch_size=patch, temporal_patch_size=2, merge_size=2)
    if row.processor == "Qwen3VLProcessor":
        geometry |= dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pixels = {"shortest_edge": (2 * patch) ** 2 * 4, "longest_edge": (2 * patch) ** 2 * 1024}
    return getattr(transformers, row.processor)(
        image_processor=transformers.Qwen2VLImageProcessor(size=dict(pixels), **geometry),
        video_processor=getattr(transformers, row.video_processor)(size=dict(pixels), **geometry),
        tokenizer=build_tokenizer(family), chat_template=chat_template(family),
    )


def spread(model) -> None:
    """Random weights of a size that suits this width, from the generator of the moment.

    transformers draws every weight with standard deviation 0.02, made for widths above 1000. At 128 the layers then
    add next to nothing to what passes them by, and learning to see takes several times the steps. Here a layer's
    output is about as large as its input. Position embeddings are sines and cosines, from half a period over the
    learned grid up: neighbours are alike from the start.
    """
    import torch

    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        with torch.no_grad():
            if name.endswith("pos_embed.weight"):
                parameter.copy_(0.5 * _waves(int(len(parameter) ** 0.5), parameter.shape[1]))
            elif name.endswith("embed_tokens.weight"):
                parameter.normal_(std=0.2)
            elif name.endswith("patch_embed.proj.weight"):
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(std=0.7 * parameter.shape[-1] ** -0.5)


def _waves(side: int, width: int):
    """(side^2, width) sines and cosines of column and row, a quarter of the width each, of rising frequency."""
    import torch

    place = torch.arange(side * side)
    frequency = torch.pi / side * torch.linspace(0.5, side / 4, width // 4)
    angles = [number[:, None] * frequency for number in (place % side, place // side)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def build(family: str, out: str | Path) -> Path:
    """Write model, generation config and processor of a tiny `family` to the folder `out`, the same bytes every time.

    Raises:
        UserError: the family is not in FAMILIES.
    """
    if family not in FAMILIES:
        raise UserError(f"there is no tiny model for family {family!r}; there are {', '.join(FAMILIES)}")
    import torch
    import transformers

    processor = build_processor(family)
    token = processor.tokenizer.convert_tokens_to_ids
    row = FAMILIES[family]
    model_class = getattr(transformers, row.model_class)
    end, pad = token("<|im_end|>"), token("<|endoftext|>")
    text = dict(row.tiny_text, vocab_size=len(processor.tokenizer), pad_token_id=pad, bos_token_id=None,
                eos_token_id=end)
    config = model_class.config_class(
        text_config=text, vision_config=dict(row.tiny_vision), image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"), vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"), tie_word_embeddings=True, tiny_random=True,
        tiny_fingerprint=fingerprint(family),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        spread(model)
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, eos_token_id=[end, pad], pad_token_id=pad, bos_token_id=None
    )
    with atomic_path(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return Path(out)


def main(words: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = Parser(description="A tiny Qwen-VL of a real architecture with random weights.")
    parser.add_argument("--family", default="qwen3_vl", help=", ".join(FAMILIES))
    parser.add_argument("--output", type=Path, help="folder; default: data/models/tiny-FAMILY")
    parser.add_argument(
        "--count-words", action="store_true",
        help="take the tokenizer's words from the domains' code as it stands; changes what every tiny model scores",
    )
    flags = parser.parse_args(words)
    if flags.count_words:
        counts = count_words(domain_strings())
        lines = (f"{json.dumps(word, ensure_ascii=False)}: {count}" for word, count in counts.items())
        with atomic_path(WORD_COUNTS) as file:
            file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        print(f"{WORD_COUNTS}: {len(counts)} words")
    start = time.perf_counter()
    folder = flags.output or MODELS / f"tiny-{flags.family}"
    if is_current(flags.family, folder):
        print(f"{folder}: up to date")
        return
    build(flags.family, folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run(main)
