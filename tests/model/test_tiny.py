"""Tiny models: small, the same every time, and in every way like a released checkpoint of their family."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from overlays.errors import UserError
from overlays.families import FAMILIES as FAMILY_ROWS
from overlays.files import sha256
from overlays.model import tiny
from tests.commands import run_script

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = sorted(FAMILY_ROWS)


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def text(words):
    return {"type": "text", "text": words}


def digests(folder):
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tiny_model_dir):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tiny_model_dir(request.param)
    return (
        AutoProcessor.from_pretrained(folder, local_files_only=True),
        AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).eval(),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_at_most_30_mb(tiny_model_dir, family):
    assert sum(path.stat().st_size for path in tiny_model_dir(family).rglob("*")) <= 30e6


def test_the_script_writes_the_same_bytes_every_time_and_only_when_needed(tiny_model_dir, tmp_path):
    words = ["make_tiny_model.py", "--output", str(tmp_path / "again"), "--family", "qwen3_vl"]
    environment = os.environ | {"PYTHONHASHSEED": "12345", "RAYON_NUM_THREADS": "1"}
    first = subprocess.run([sys.executable, *words], cwd=ROOT / "scripts", env=environment, capture_output=True,
                           text=True, check=True)
    assert " MB in " in first.stdout and "up to date" in run_script(*words).stdout
    assert digests(tmp_path / "again") == digests(tiny_model_dir("qwen3_vl"))
    failed = run_script(*words[:-1], "nothing")
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert failed.stderr.startswith("error: there is no tiny model for family 'nothing'")


def test_building_leaves_the_callers_random_state_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    tiny.build("qwen3_vl", tmp_path / "model")
    assert torch.equal(torch.rand(3), expected)


def test_it_is_current_until_the_code_or_the_corpus_changes(tiny_model_dir, monkeypatch):
    folder = tiny_model_dir("qwen3_vl")
    assert tiny.is_current("qwen3_vl", folder)
    assert not tiny.is_current("qwen3_vl_moe", folder)
    assert not tiny.is_current("qwen3_vl", folder / "nothing here")
    monkeypatch.setattr(tiny, "corpus", lambda: ["other words"])
    assert not tiny.is_current("qwen3_vl", folder)


@pytest.fixture(scope="module")
def domain_words():
    """What the domains say, counted by word."""
    return tiny.count_words(tiny.domain_strings())


def test_its_words_are_those_counted_and_each_is_one_token(loaded, domain_words):
    assert tiny.count_words(["No, no 12", " no"]) == {" no": 2, " ": 1, ",": 1, "1": 1, "2": 1, "No": 1}
    tokenizer, words = loaded[0].tokenizer, set(tiny.corpus())
    assert all(len(tokenizer(word)["input_ids"]) == 1 for word in words)
    known = sum(count for word, count in domain_words.items() if word in words)  # most of what the domains say today
    assert known > 0.85 * sum(domain_words.values()), (
        "run scripts/make_tiny_model.py --count-words, then measure the samples anew")


def test_an_unknown_family_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="'qwen9'.*qwen2_5_vl"):
        tiny.build("qwen9", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_every_byte_and_every_text_survives_the_tokenizer(loaded):
    tokenizer = loaded[0].tokenizer
    every_byte = "".join(map(chr, range(256))) + "明矾石、高岭石 35 % \U0001f30b \u202e\x00\uffff"
    for sample in (every_byte, "No. Alteration minerals cover about 5 % of this tile.", " \n\n\t x  "):
        assert tokenizer.decode(tokenizer(sample)["input_ids"]) == sample
    assert len(tokenizer("2026")["input_ids"]) == 4  # every digit is a token of its own


def test_the_tokenizer_was_trained_on_english_and_chinese(loaded):
    tokenizer = loaded[0].tokenizer
    for words in ("Which minerals cover this tile?", "蚀变矿物约占该图块的"):
        assert len(tokenizer(words)["input_ids"]) < len(words.encode()) / 2.4


def test_special_tokens_are_single_and_agree_with_the_config(loaded):
    processor, model = loaded
    tokenizer, config = processor.tokenizer, model.config
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (*tiny.SPECIAL, *tiny.WORDS, "<|endoftext|>")}
    assert len(set(ids.values())) == len(ids) and max(ids.values()) < config.text_config.vocab_size
    for token, number in ids.items():
        assert tokenizer(f"a{token}b")["input_ids"][1] == number
    assert config.image_token_id == ids["<|image_pad|>"] == processor.image_token_id
    assert config.video_token_id == ids["<|video_pad|>"] == processor.video_token_id
    assert config.vision_start_token_id == ids["<|vision_start|>"]
    assert model.generation_config.eos_token_id[0] == ids["<|im_end|>"] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id == ids["<|endoftext|>"]
    assert not model.generation_config.do_sample
    assert config.tiny_random is True
    visible = tokenizer.decode([ids["<think>"], ids["<|im_end|>"]], skip_special_tokens=True)
    assert visible == "<think>"


def test_the_chat_template_is_qwens(loaded):
    processor, model = loaded
    messages = [
        *user({"type": "image"}, text("What?")), {"role": "assistant", "content": [text("This.")]},
        *user(text("And?")), {"role": "assistant", "content": "That."},
    ]
    old = model.config.model_type.startswith("qwen2")
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if old else ""
    thought = "<think>\n\n</think>\n\n" if FAMILY_ROWS[model.config.model_type].thinking else ""
    expected = (
        f"{system}<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\nThis.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
        f"<|im_start|>assistant\n{thought}That.<|im_end|>\n"
    )
    assert processor.apply_chat_template(messages, tokenize=False) == expected
    prompt = processor.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith(f"<|im_start|>assistant\n{thought}") and expected.startswith(prompt)
    own = [{"role": "system", "content": "Be brief."}, *messages]
    rendered = processor.apply_chat_template(own, tokenize=False)
    assert rendered.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")


def test_it_sees_an_image_and_a_video_and_answers(loaded):
    processor, model = loaded
    noise = random.Random(0)
    picture = Image.frombytes("RGB", (96, 64), noise.randbytes(96 * 64 * 3))
    clip = torch.stack([torch.full((3, 64, 64), 40 * frame, dtype=torch.uint8) for frame in range(4)])
    for media in ({"images": [picture]}, {"videos": [clip]}):
        kind = next(iter(media))[:-1]
        prompt = processor.apply_chat_template(
            user({"type": kind}, text("What?")), tokenize=False, add_generation_prompt=True
        )
        options = {"do_sample_frames": False} if kind == "video" else {}
        inputs = processor(text=[prompt], **media, return_tensors="pt", **options)
        pad = getattr(model.config, f"{kind}_token_id")
        merged = int(inputs[f"{kind}_grid_thw"].prod()) // 4
        assert int((inputs["input_ids"] == pad).sum()) == merged > 0
        output = model.generate(**inputs, max_new_tokens=3)
        assert output.shape[1] <= inputs["input_ids"].shape[1] + 3
        blind = model(**inputs).logits
        pixels = "pixel_values" if kind == "image" else "pixel_values_videos"
        seen = model(**{**inputs, pixels: inputs[pixels] + 1}).logits
        assert not torch.allclose(blind, seen, atol=1e-6)
