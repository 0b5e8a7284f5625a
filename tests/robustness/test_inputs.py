"""What a file from outside may ask for: no code is run, and what would fill memory or time is one sentence."""

import io
import json
import shutil
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from overlays import archives, cli, runs
from overlays.data import chat, records, tables
from overlays.data import template as template_module
from overlays.domains.cuprite.cube import read_wavelengths
from overlays.domains.cuprite.labels import read_label_raster
from overlays.domains.satellite import labels
from overlays.errors import UserError
from overlays.files import read_json
from overlays.model import adapters, load
from overlays.train import arguments, config_file
from tests.commands import run_call
from tests.robustness import isolated

CLASSES = ("AutoConfig", "AutoProcessor", "AutoModelForImageTextToText", "AutoTokenizer", "AutoImageProcessor")


@pytest.fixture
def model(tiny_model_dir, tmp_path):
    """A model folder of its own."""
    return shutil.copytree(tiny_model_dir("qwen3_vl"), tmp_path / "model")


def change(file, value, *path):
    """Set a value of a JSON file, by its keys."""
    content = inner = json.loads(file.read_text())
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(content))


# ---- code in a model folder


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_code_in_a_model_folder_is_never_run(model, file, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    change(model / file, {name: "evil.Evil" for name in CLASSES}, "auto_map")
    load.load_processor(model)  # what transformers has a class for needs nothing of it
    load.load_config(model)
    change(model / file, "evil", {"config.json": "model_type", "tokenizer_config.json": "tokenizer_class",
                                  "processor_config.json": "processor_class"}[file])
    if file == "config.json":
        with pytest.raises(UserError, match="needs code of its own"):
            load.load_config(model)
    if file == "processor_config.json":
        with pytest.raises(UserError, match="needs code of its own"):
            load.load_processor(model)
    assert not (tmp_path / "ran").exists()


# ---- model folders that ask for too much


@pytest.mark.parametrize(("path", "value", "said"), [
    (("text_config", "num_hidden_layers"), 10**9, "num_hidden_layers in config.json must be a whole number from 1"),
    (("text_config", "hidden_size"), 1 << 16, "makes .* weights, but its files have"),
    (("vision_config", "num_position_embeddings"), 10**10, "makes .* weights, but its files have"),
    (("text_config", "rope_parameters", "mrope_section"), True, "'mrope_section' must be a list"),
    (("text_config",), 3, "cannot be loaded"), (("model_type",), [1], "cannot be loaded"),
])
def test_a_config_is_compared_with_its_weights_before_they_are_made(model, path, value, said):
    change(model / "config.json", value, *path)
    with pytest.raises(UserError, match=said):
        load.load_base(model, torch.float32)


@pytest.mark.parametrize(("path", "value", "said"), [
    (("image_processor", "patch_size"), 0, "patch_size must be a whole number from 1"),
    (("image_processor", "patch_size"), "x", "patch_size must be a whole number from 1"),
    (("image_processor", "image_std"), [0, 0, 0], "image_std must be above 0"),
    (("image_processor", "image_mean"), "x", "image_mean must be a list"),
    (("video_processor", "temporal_patch_size"), 10**30, "temporal_patch_size must be"),
    (("video_processor", "fps"), "x", "fps must be a number above 0"),
    (("image_processor",), [1], "cannot be loaded"),
])
def test_numbers_of_a_processor_are_checked(model, path, value, said):
    change(model / "processor_config.json", value, *path)
    with pytest.raises(UserError, match=said):
        load.load_processor(model)


@pytest.mark.parametrize(("template", "said"), [
    ("{% for i in range(100000000) %}a{% endfor %}", "the chat template refuses this conversation: Range too big"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}a{% endfor %}{% endfor %}", "takes more than 1 seconds"),
    ("{{ 'x' * 3000000000 }}", "takes more than"), ("{{ 1 / 0 }}", "refuses this conversation: division by zero"),
])
def test_templates_are_bounded(model, template, said, monkeypatch):
    monkeypatch.setattr(template_module, "TEMPLATE_SECONDS", 1)
    file = model / "chat_template.jinja"
    file.write_text(template + file.read_text())
    with pytest.raises(UserError, match=said):
        processor = load.load_processor(model)
        chat.prompt_text({"conversations": [{"from": "human", "value": "Q"}]}, processor)


def test_templates_are_bounded_where_the_shell_has_limits(model, monkeypatch):
    monkeypatch.setattr(template_module, "TEMPLATE_SECONDS", 1)
    (model / "chat_template.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    outcome = isolated.call(lambda: run_call(lambda: load.load_processor(model)).stderr)  # sets hard limits
    assert "takes more than 1 seconds" in outcome.value, outcome


@pytest.mark.parametrize(("file", "path", "value", "said"), [
    ("generation_config.json", "eos_token_id", "x", "'eos_token_id' must be a whole number, not text in gen"),
    ("generation_config.json", "bad_words_ids", 3, "'bad_words_ids' must be a list"),
    ("generation_config.json", "guidance_scale", 1.5, "guidance_scale is 1.5, which is not supported"),
    ("generation_config.json", "repetition_penalty", -1, "repetition_penalty must be above 0"),
    ("tokenizer_config.json", "model_max_length", "x", "model_max_length must be a number, not text in tokenizer_con"),
])
def test_values_of_another_type_beside_a_model_are_named(model, file, path, value, said):
    change(model / file, value, path)
    with pytest.raises(UserError, match=said):
        load.load_for_inference(model)


def test_a_tokenizer_of_another_model_is_named(model):
    change(model / "tokenizer.json", {"a": 10**6}, "model", "vocab")
    change(model / "tokenizer.json", [], "model", "merges")
    with pytest.raises(UserError, match="has ids up to 1000000, but the model has embeddings for"):
        load.load_for_inference(model)


def test_a_tokenizer_with_other_ids_of_media_is_named(model):
    tokens = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    other = {"<|image_pad|>": "<|video_pad|>", "<|video_pad|>": "<|image_pad|>"}
    change(model / "tokenizer.json", [{**row, "content": other.get(row["content"], row["content"])} for row in tokens],
           "added_tokens")
    with pytest.raises(UserError, match="token_id .* but the model's config.json says"):
        load.load_for_inference(model)


def test_integers_are_no_weights(model, tmp_path):
    file = model / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(content[:8] + content[8:end].replace(b'"F32"', b'"I32"') + content[end:])
    with pytest.raises(UserError, match="model.safetensors is damaged: by its header .* is of type I32"):
        load.load_base(model, torch.float32)
    save_file({"base_model.model.a.lora_A.weight": torch.ones(2, dtype=torch.int8)},
              tmp_path / adapters.WEIGHTS)
    with pytest.raises(UserError, match="lora_A.weight is of type I8"):
        adapters.lora_names(tmp_path)


def test_an_adapter_that_leads_back_to_itself_is_named(tmp_path):
    for name, base in (("self", "self"), ("one", "two"), ("two", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / adapters.CONFIG).write_text(json.dumps({"base_model_name_or_path": str(tmp_path / base)}))
    for name in ("self", "one", "two"):
        with pytest.raises(UserError, match="lead back to"):
            adapters.adapter_base(tmp_path / name)


# ---- tables and archives


def test_a_cell_far_out_does_not_fill_memory(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    book.active["A1"], book.active["XFD1048576"] = "city", 1
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(UserError, match="reaches to row 1048576 and column 16384"):
        labels.read_labels(tmp_path / "a.xlsx")


def test_a_parquet_file_of_endless_rows_is_refused(tmp_path):
    pd.DataFrame({"messages": ["x"] * 500_000}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="unpack to 500000 rows"):
        next(tables.rows(tmp_path / "a.parquet"))


@pytest.mark.parametrize("is_index", [False, True])
def test_text_of_a_parquet_file_that_is_not_utf8_is_named(tmp_path, is_index):
    frame = pd.DataFrame({"clip_id": ["clip-1", "clip-2"], "road": ["a", "b"]})
    frame = frame.set_index("clip_id") if is_index else frame
    frame.to_parquet(tmp_path / "a.parquet", compression=None)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"clip-", b"clip\xb7", 1))
    with pytest.raises(ValueError, match="decode|Wrapping"):
        tables.read_frame(tmp_path / "a.parquet")


def test_an_archive_is_refused_by_its_first_member_too_large(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        info = tarfile.TarInfo("big")
        info.size = 5000
        out.addfile(info, io.BytesIO(bytes(5000)))
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[:512])  # what follows the header is not read
    with pytest.raises(UserError, match="above the limit"):
        archives.unpack_beside(tmp_path / "a.tar", limit=1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.bin", bytes(5000))
    with tarfile.open(tmp_path / "cut.tar.gz", "w:gz") as out:
        out.add(tmp_path / "a.tar")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "cut.tar.gz").read_bytes()[:60])
    with pytest.raises(UserError, match="cut.tar.gz cannot be read"):
        archives.unpack_beside(tmp_path / "cut.tar.gz")
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 1000)
    with pytest.raises(UserError, match="above the limit"):
        archives.read_member(tmp_path / "a.zip", archives.members(tmp_path / "a.zip")["a.bin"])


# ---- YAML and JSON


@pytest.mark.parametrize(("text", "said"), [
    ("a: &a [x, x]\nb: &b [*a, *a]\n", "aliases"), ("seed: 1\nseed: 2\n", "'seed' is given twice"),
    ("[" * 1500, "nested too deeply"), ("- a\n", "must be an object, not a list"), ("seed: !!binary aGk=\n", "must be"),
    ("seed: {a: 2024-01-01}\n", "not JSON serializable"), (f"seed: {'9' * 5000}\n", "digits"),
    ("\xff\0", "must be a YAML"),
    ("x: " + "y" * 2_000_000, "more than 1024 kB"),
])
def test_a_configuration_is_a_mapping_of_plain_values(tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        config_file.read_yaml(tmp_path / "a.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        config_file.read_yaml(tmp_path / "folder.yaml")


@pytest.mark.parametrize(("content", "said"), [
    (b"", "not JSON"), (b"[]", "it must be an object, not a list"),
    (b'{"n": "x"}', "'n' must be a whole number, not text"),
    (b'{"n": true}', "'n' must be a whole number, not true/false"), (b"{}", "it has no 'n'"), (b"\xff", "utf-8"),
    (b'{"n": ' + b"9" * 5000 + b"}", "digits"), (b'{"n": 1, "s": "\\ud83d"}', "half a character"),
    (b'{"n": 1, "x": ' + b"[" * 5000, "levels"), (b'{"n": 1, "x": ' + b"[" * 500 + b"]" * 500 + b"}", "levels"),
    (b'{"n": 1, "f": NaN}', "'f' is a number without end"),
    (b'{"n": 1, "rows": [1, "x"]}', "element 2 of 'rows' must be"),
    (b'{"n": 99999999999999999999}', "beyond its range"),
])
def test_a_json_file_of_another_form_is_one_sentence(tmp_path, content, said):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_json(tmp_path / "a.json", {"n": int, "f?": float, "s?": str, "rows?": [int]})


def test_a_json_file_may_leave_out_what_is_optional(tmp_path):
    (tmp_path / "a.json").write_text('{"n": 1, "f": null, "any": [[1]]}')
    assert read_json(tmp_path / "a.json", {"n": int, "f?": float, "rows?": [int]}) == {"n": 1, "f": None, "any": [[1]]}
    for path, said in ((tmp_path, "Is a directory"), (tmp_path / "none", "there is no file")):
        with pytest.raises(UserError, match=said):
            read_json(path)


def test_a_checkpoint_folder_of_another_script_is_none(tmp_path):
    (tmp_path / "checkpoint-²").mkdir()
    (tmp_path / "checkpoint-²" / "complete").touch()
    assert runs.checkpoints(tmp_path) == []


# ---- the rest


def test_one_process_sees_one_device(tmp_path):
    for name in arguments.CLASSES:
        training = getattr(arguments, name)(output_dir=str(tmp_path), use_cpu=True, report_to="none")
        training._n_gpu = 2  # what transformers counts where two are visible
        assert training.n_gpu == 1


def test_what_stands_behind_version_is_not_ignored():
    with pytest.raises(UserError, match="--version takes nothing"):
        cli.main(["--version", "x"])


def test_an_empty_run_folder_is_named():
    with pytest.raises(UserError, match="--output_dir .* it is empty"):
        arguments.read(["--model_name_or_path", "m", "--dataset_use", "d", "--output_dir", "", "--tune_mm_llm", "True"],
                       arguments.SFT)


def test_a_target_fits_the_numbers_of_a_head():
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    for value in (1e308, float("inf"), 10**400):
        assert "range of float32" in records.check_record({"conversations": turns, "target": {"x": value}})[0]
    assert records.check_record({"conversations": turns, "target": {"x": float(np.float32(3.4e38))}}) == []


def test_an_empty_label_raster_and_one_of_text_are_one_sentence(tmp_path):
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.savez(tmp_path / "many.npz", a=np.zeros((1, 1)))
    (tmp_path / "many.npz").rename(tmp_path / "many.npy")
    for name in ("empty", "text", "many"):
        with pytest.raises(UserError, match=f"{name}.npy"):
            read_label_raster(tmp_path / f"{name}.npy", (1, 1))
    with pytest.raises(UserError, match="empty.npy cannot be read"):
        read_wavelengths(tmp_path / "empty.npy")
