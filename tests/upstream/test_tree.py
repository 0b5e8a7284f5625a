"""With upstream's own tree: where it is right we give the same, where it is wrong we do not, and both engines agree.

Each defect (numbers as in docs/upstream.md) is shown in bare upstream too: its test fails on the day it is mended.
"""

import ast
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image

from overlays import registry
from overlays.data import chat
from overlays.data.dataset import SupervisedDataset, sample_rows
from overlays.data.media import Media, MediaOptions, apply_resolution
from overlays.data.rendering import to_messages
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl
from overlays.model import load, parts
from overlays.train import arguments, sft
from overlays.upstream import engine as engines
from overlays.upstream import tree as upstream
from tests.upstream_tokens import ASSISTANT, qwen_numbered

pytestmark = pytest.mark.upstream
ROOT = Path(__file__).resolve().parents[2]


class Stop(Exception):
    """Ends a train() once there is a Trainer to look at."""


@pytest.fixture(scope="module")
def tree():
    """Upstream's checkout."""
    found = upstream.find()
    if found is None:
        pytest.skip("upstream's tree is not checked out: ./scripts/setup.sh --upstream, or set QWEN3VL_UPSTREAM")
    return found


@pytest.fixture(scope="module")
def bare(tree):
    """Upstream's train_qwen as it is, but for flash-attn."""
    stale = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "qwenvl"}
    module = upstream.load(tree, engines.shadows())
    sys.modules["qwenvl.data"].data_dict["demo"] = {
        "annotation_path": str(tree / upstream.PACKAGE / "demo" / "single_images.json"),
        "data_path": str(tree / upstream.PACKAGE),
    }
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "qwenvl"]:
        del sys.modules[name]
    sys.modules.update(stale)


@pytest.fixture(scope="module")
def processing(bare):
    """Upstream's data_processor."""
    return sys.modules["qwenvl.data.data_processor"]


@pytest.fixture(scope="module")
def numbered(tiny_model_dir):
    """(processor, position function) with the token ids that upstream's code expects."""
    return qwen_numbered("qwen3_vl", load.load_config(tiny_model_dir("qwen3_vl")))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Two pictures of different shapes and a clip of five seconds."""
    import av
    import numpy as np

    folder = tmp_path_factory.mktemp("media")
    noise = np.random.default_rng(0)
    for name, (height, width) in {"a": (90, 130), "b": (200, 64)}.items():
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(40):
            frame = np.full((64, 96, 3), 6 * number, dtype=np.uint8)
            frame[:, 2 * number : 2 * number + 8] = (250, 20, 20)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return folder


def record(question, answer="It is kaolinite, 42 %.", **keys):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "r", **keys, "conversations": turns}


def theirs(processing, processor, row, root):
    """Upstream's own sample for a record."""
    dataset = processing.LazySupervisedDataset.__new__(processing.LazySupervisedDataset)
    dataset.processor, dataset.merge_size, dataset.get_rope_index = processor, 2, processing.get_rope_index_3
    return dataset._get_item([{**row, "data_path": str(root)}])


def fetch(video, sample_indices_fn=None):
    """transformers' own decoding, by PyAV: its default needs a package that not everybody has."""
    from transformers.video_utils import load_video

    if isinstance(video, list):
        return list(zip(*[fetch(one, sample_indices_fn) for one in video], strict=True))
    return load_video(video, backend="pyav", sample_indices_fn=sample_indices_fn)


# ---- parity of samples


RECORDS = {
    "text": record("Which mineral?"),
    "image": record("<image>\nWhich mineral?", image="a.png"),
    "several images": record("<image> first, <image> second\nWhich one holds alunite?", image=["a.png", "b.png"]),
    "video": record("<video>\nWhat moves?", "A red bar.", video="clip.mp4"),
    "chinese": record("<image>\n哪种矿物？", "高岭石。", image="b.png"),
}


@pytest.mark.parametrize("row", RECORDS.values(), ids=RECORDS)
def test_samples_are_upstreams_own_where_it_is_right(processing, numbered, media, monkeypatch, row):
    processor, positions = numbered
    monkeypatch.setattr(processor.video_processor, "fetch_videos", fetch, raising=False)
    expected, found = theirs(processing, processor, row, media), chat.encode(row, processor, media)
    assert torch.equal(expected["input_ids"][0], found["input_ids"])
    for key in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        assert (key in expected) == (key in found)
        assert key not in found or torch.equal(expected[key], found[key])
    assert torch.equal(expected["position_ids"], positions(
        input_ids=found["input_ids"][None], mm_token_type_ids=found["mm_token_type_ids"][None],
        image_grid_thw=found.get("image_grid_thw"), video_grid_thw=found.get("video_grid_thw"),
    ))
    # The one difference in labels: upstream also trains the line break that its template puts behind the end token.
    differ = (expected["labels"][0] != found["labels"]).nonzero().flatten().tolist()
    assert differ == [len(found["labels"]) - 1]
    assert processor.tokenizer.decode(found["input_ids"][differ]) == "\n"


# ---- defects


def run_bare(bare, monkeypatch, model, folder, *flags):
    """What upstream's train() gives its Trainer."""
    caught = {}

    def trainer(**values):
        caught.update(values)
        raise Stop

    monkeypatch.setattr(bare, "Trainer", trainer)
    monkeypatch.setattr(sys, "argv", [
        "train_qwen.py", "--model_name_or_path", str(model), "--dataset_use", "demo", "--output_dir", str(folder),
        "--use_cpu", "True", "--report_to", "none", *flags,
    ])
    with pytest.raises(Stop):
        bare.train(attn_implementation="eager")
    return SimpleNamespace(**caught)


def run_overlaid(bare, tree, model, folder, *flags):
    """The Trainer that the same train() makes under the overlay."""
    model_args, data, training = arguments.parse([
        "--model_name_or_path", str(model), "--output_dir", str(folder), "--report_to", "none", "--dataset_use",
        str(tree / upstream.PACKAGE / "demo" / "single_images.json"), *flags,
    ])
    run = sft.prepare(model_args, data, training, engines.Engine("upstream", None, "", bare))
    caught = []

    def stop(trainer):
        caught.append(trainer)
        raise Stop

    run.fit = stop
    with pytest.raises(Stop):
        engines.drive(bare, run, registry.resolve(data.dataset_use))
    return caught[0]


def trainable(model, word):
    return [parameter for name, parameter in model.named_parameters() if word in name and parameter.requires_grad]


LORA = ("--lora_enable", "True", "--lora_r", "4")


def test_1_lora_ignores_the_projector_and_a_dropout_of_zero(bare, tree, tiny_model_dir, tmp_path, monkeypatch):
    model, flags = tiny_model_dir("qwen3_vl"), (*LORA, "--lora_dropout", "0.0", "--tune_mm_mlp", "True")
    found = run_bare(bare, monkeypatch, model, tmp_path / "a", *flags).model
    assert not trainable(found, "merger") and found.peft_config["default"].lora_dropout == 0.05
    monkeypatch.undo()
    found = run_overlaid(bare, tree, model, tmp_path / "b", *flags).model
    assert trainable(found, ".merger.") and trainable(found, "deepstack_merger_list")
    assert trainable(found, "lora_") and found.peft_config["default"].lora_dropout == 0.0


def test_2_deepstack_mergers_and_an_untied_head_are_forgotten(bare, tiny_model_dir):
    config = load.load_config(tiny_model_dir("qwen3_vl"))
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    model = transformers.Qwen3VLForConditionalGeneration(config)
    inner = model.model
    places = SimpleNamespace(visual=inner.visual, language_model=inner.language_model, lm_head=model.lm_head)
    bare.set_model(SimpleNamespace(tune_mm_vision=False, tune_mm_mlp=True, tune_mm_llm=False), places)
    assert trainable(model, "visual.merger.") and not trainable(model, "deepstack_merger_list")
    assert trainable(model, "lm_head")
    rates = {"adapter": 0, "merger": 1e-4, "vision": 0, "embeddings": 0, "language_model": 0}
    parts.set_trainable(model, config, rates)
    assert trainable(model, "deepstack_merger_list") and not trainable(model, "lm_head")


def test_3_the_rate_of_the_vision_tower_alone_is_ignored(bare, tree, tiny_model_dir, tmp_path):
    source = (tree / upstream.PACKAGE / "qwenvl" / "train" / "trainer.py").read_text()
    function = next(node for node in ast.parse(source).body if getattr(node, "name", "") == "create_optimizer")
    names = {"Trainer": transformers.Trainer}
    exec(compile(ast.Module([function], []), "trainer.py", "exec"), names)
    flags = ("--tune_mm_vision", "True", "--tune_mm_mlp", "True", "--vision_tower_lr", "1e-6",
             "--learning_rate", "1e-4")
    trainer = run_overlaid(bare, tree, tiny_model_dir("qwen3_vl"), tmp_path / "run", *flags)
    groups = names["create_optimizer"](trainer).param_groups
    assert {group["lr"] for group in groups} == {1e-4}
    trainer.optimizer = None
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-6, 1e-4}


def test_4_weights_and_adam_are_bf16(bare, tree, tiny_model_dir, tmp_path, monkeypatch):
    model, flags = tiny_model_dir("qwen3_vl"), ("--bf16", "True", "--tune_mm_mlp", "True")
    monkeypatch.setattr(bare, "set_model", lambda *_: None)  # which does not get through, see 11
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: -1)
    found = run_bare(bare, monkeypatch, model, tmp_path / "a", *flags).model
    assert {parameter.dtype for parameter in trainable(found, "")} == {torch.bfloat16}
    monkeypatch.undo()
    found = run_overlaid(bare, tree, model, tmp_path / "b", *flags).model
    assert {parameter.dtype for parameter in trainable(found, "")} == {torch.float32}


def test_5_the_word_assistant_in_a_question_starts_a_label(processing, numbered, tmp_path):
    processor = numbered[0]
    row = record("assistant\nor operator, which word is longer?", "operator")
    text = processor.tokenizer.encode(row["conversations"][0]["value"])
    assert text[0] == ASSISTANT
    labelled = theirs(processing, processor, row, tmp_path)["labels"][0]
    assert "which word is longer" in processor.tokenizer.decode(labelled[labelled != -100])
    labelled = chat.encode(row, processor, tmp_path)["labels"]
    assert processor.tokenizer.decode(labelled[labelled != -100]) == "operator<|im_end|>"


def test_6_a_system_turn_becomes_a_trained_answer(processing, tmp_path):
    row = record("Which mineral?")
    row["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    assert processing._build_messages(row, tmp_path)[0]["role"] == "assistant"
    assert to_messages(row, Media())[0]["role"] == "system"


def bare_dataset(processing, processor, name, flags=()):
    data = transformers.HfArgumentParser(sys.modules["qwenvl.train.argument"].DataArguments)
    data = data.parse_args_into_dataclasses(["--dataset_use", name, *flags])[0]
    data.model_type = "qwen3vl"
    return processing.make_supervised_data_module(processor, data_args=data)


def our_dataset(file, numbered, **options):
    return SupervisedDataset(registry.resolve(str(file)), *numbered, MediaOptions(), **options)


def test_7_a_broken_sample_becomes_its_neighbour(processing, numbered, media, monkeypatch):
    rows = [record("<image>\nLost?", "yes", image="lost.png"), record("<image>\nThere?", "no", image="a.png")]
    write_json(media / "broken.json", rows)
    monkeypatch.setitem(sys.modules["qwenvl.data"].data_dict, "broken",
                        {"annotation_path": str(media / "broken.json"), "data_path": str(media)})
    monkeypatch.setattr(processing.time, "sleep", lambda _: None)
    dataset = bare_dataset(processing, numbered[0], "broken")["train_dataset"]
    assert torch.equal(dataset[0]["input_ids"], dataset[1]["input_ids"])
    with pytest.raises(UserError, match=r"broken.json, row 1 .*lost.png is missing"):
        our_dataset(media / "broken.json", numbered)
    report = our_dataset(media / "broken.json", numbered, on_bad_sample="skip").report
    assert (report["kept"], report["bad"]) == (1, 1)


def test_7_a_share_of_the_records_depends_on_the_moment(processing, numbered, media, monkeypatch):
    write_json(media / "many.json", [record(f"Question {number}?") for number in range(40)])
    monkeypatch.setitem(sys.modules["qwenvl.data"].data_dict, "many",
                        {"annotation_path": str(media / "many.json"), "data_path": str(media)})

    def questions(seed):
        random.seed(seed)
        rows = bare_dataset(processing, numbered[0], "many%50")["train_dataset"].list_data_dict
        return [row["conversations"][0]["value"] for row in rows]

    assert questions(1) != questions(2)
    random.seed(1)
    first = sample_rows(40, 0.5, "42:many")
    random.seed(2)
    assert sample_rows(40, 0.5, "42:many") == first


def test_8_the_length_limit_is_not_heard_and_would_cut_image_tokens(
    bare, processing, numbered, media, tiny_model_dir, tmp_path, monkeypatch
):
    found = run_bare(bare, monkeypatch, tiny_model_dir("qwen3_vl"), tmp_path, *LORA, "--model_max_length", "16")
    assert found.processing_class.model_max_length == 16
    assert found.data_collator.tokenizer.model_max_length > 16
    processor = numbered[0]
    row = record("<image>\nWhich mineral?", image="b.png")
    monkeypatch.setattr(processor.tokenizer, "model_max_length", 10)
    collate = processing.DataCollatorForSupervisedDataset(processor.tokenizer)
    batch = collate([theirs(processing, processor, row, media)])
    assert (batch["input_ids"] == processor.image_token_id).sum() < batch["image_grid_thw"].prod() // 4
    write_json(media / "long.json", [row, record("Short?", "yes")])
    ours = our_dataset(media / "long.json", numbered, model_max_length=16)
    assert (ours.report["kept"], ours.report["too_long"]) == (1, 1)


@pytest.mark.parametrize("name, wrong", [
    ("qwen3_small", "Qwen3VLMoeForConditionalGeneration"), ("my_lora", "Qwen2VLForConditionalGeneration"),
])
def test_9_the_path_chooses_the_model_class(bare, tree, tiny_model_dir, tmp_path, monkeypatch, name, wrong):
    folder = Path(shutil.copytree(tiny_model_dir("qwen3_vl"), tmp_path.parent / f"x{tmp_path.name[-1]}" / name))
    assert "qwen3" in name or "qwen" not in str(folder)

    def chosen(class_name):
        def from_pretrained(*_, **__):
            raise Stop(class_name)

        return SimpleNamespace(from_pretrained=from_pretrained)

    for target in engines.TARGETS:
        if target.name.endswith("ForConditionalGeneration"):
            monkeypatch.setattr(bare, target.name, chosen(target.name))
    monkeypatch.setattr(sys, "argv", ["x", "--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "a"),
                                      "--report_to", "none"])
    with pytest.raises(Stop, match=wrong):
        bare.train()
    monkeypatch.undo()
    found = run_overlaid(bare, tree, folder, tmp_path / "b", "--tune_mm_mlp", "True").model
    assert type(found) is transformers.Qwen3VLForConditionalGeneration


def test_10_other_token_ids_leave_nothing_to_learn(processing, tiny_model_dir, tmp_path):
    processor, row = load.load_processor(tiny_model_dir("qwen3_vl")), record("Which mineral?")
    assert (theirs(processing, processor, row, tmp_path)["labels"] == -100).all()
    assert (chat.encode(row, processor, tmp_path)["labels"] != -100).any()


def test_11_trainer_py_does_not_import_even_with_flash_attention(tree, monkeypatch):
    for name in ("flash_attn", "flash_attn.flash_attn_interface"):
        module = ModuleType(name)
        module.flash_attn_varlen_func = None
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location(
        "upstreams_trainer", tree / upstream.PACKAGE / "qwenvl" / "train" / "trainer.py"
    )
    with pytest.raises(ImportError, match="apply_multimodal_rotary_pos_emb"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_11_set_model_misses_the_vision_tower_and_max_pixels_is_skipped(bare, processing, tiny_model_dir):
    model, processor = (call(tiny_model_dir("qwen3_vl")) for call in (
        transformers.Qwen3VLForConditionalGeneration.from_pretrained, load.load_processor))
    with pytest.raises(AttributeError, match="visual"):
        bare.set_model(SimpleNamespace(tune_mm_vision=False, tune_mm_mlp=True, tune_mm_llm=False), model)
    before = processor.image_processor.size["longest_edge"]
    flags = SimpleNamespace(min_pixels=1024, max_pixels=4096, video_min_pixels=1024, video_max_pixels=4096,
                            video_min_frames=2, video_max_frames=4, video_fps=1)
    processing.update_processor_pixels(processor, flags)
    assert processor.image_processor.size["longest_edge"] == before != 4096
    apply_resolution(processor, MediaOptions(min_pixels=1024, max_pixels=4096))
    assert processor.image_processor.size["longest_edge"] == 4096


def test_15_keys_that_forward_does_not_name_vanish(bare, tree, tiny_model_dir, tmp_path, monkeypatch):
    model = tiny_model_dir("qwen3_vl")
    samples = [{"input_ids": torch.ones(2), "depth": torch.ones(2)}]

    def keys(trainer):
        return set(trainer._get_collator_with_removed_columns(lambda rows: rows[0])(samples)) if (
            trainer.args.remove_unused_columns) else set(trainer.data_collator(samples))

    found = run_bare(bare, monkeypatch, model, tmp_path / "a", *LORA)
    assert "depth" not in keys(transformers.Trainer(model=found.model, args=found.args, data_collator=list))
    monkeypatch.undo()
    trainer = run_overlaid(bare, tree, model, tmp_path / "b", *LORA)
    trainer.data_collator = lambda rows: rows[0]
    assert "depth" in keys(trainer)


# ---- what users of upstream bring along


def test_the_check_passes_for_the_pinned_tree(tree):
    done = subprocess.run([sys.executable, "-m", "overlays.upstream", "--check"], cwd=ROOT, capture_output=True,
                          text=True, env={**os.environ, upstream.VARIABLE: str(tree)})
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_flags_of_upstreams_launchers_are_known(tree, tmp_path):
    shown = tmp_path / "torchrun"
    shown.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    shown.chmod(0o755)
    checked = []
    for script in sorted((tree / upstream.PACKAGE / "scripts").glob("sft*.sh")):
        done = subprocess.run(["bash", str(script)], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NPROC_PER_NODE": "1"})
        if "bad substitution" in done.stderr:  # sft_30a3b_lora.sh: bash refuses it, so nobody runs it
            continue
        words = done.stdout.splitlines()
        words = words[words.index("qwenvl/train/train_qwen.py") + 1 :]
        for unwanted in ("--deepspeed", "--report_to"):
            if unwanted in words:
                place = words.index(unwanted)
                words = words[:place] + words[place + 2 :]
        _, data, training = arguments.parse([*words, "--report_to", "none"])
        assert data.dataset_use and training.warmup_steps == 0.03
        checked.append(script.name)
    assert len(checked) >= 5


def command(engine, model, data, output, *flags):
    return [sys.executable, "-m", "overlays.train", "--engine", engine, "--model_name_or_path", str(model),
            "--dataset_use", str(data), "--output_dir", str(output), "--report_to", "none", "--logging_steps", "1",
            "--per_device_train_batch_size", "2", "--learning_rate", "1e-3", "--dataloader_num_workers", "0", *flags]


def train(tree, *words):
    done = subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", upstream.VARIABLE: str(tree)})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(folder):
    state = json.loads((folder / "trainer_state.json").read_text())
    return [row["loss"] for row in state["log_history"] if "loss" in row]


def test_upstreams_demo_trains_as_it_is(tree, tiny_model_dir, tmp_path):
    demo = tree / upstream.PACKAGE / "demo" / "single_images.json"
    said = train(tree, "upstream", tiny_model_dir("qwen3_vl"), demo, tmp_path, "--tune_mm_mlp", "True", "--max_steps",
                 "2", "--max_pixels", "16384", "--min_pixels", "1024")
    assert f"engine: upstream at {upstream.commit(tree)}" in said
    assert "3 training samples" in said and all(0 < loss < 20 for loss in losses(tmp_path))


MODES = {
    "full": ("--tune_mm_llm", "True", "--tune_mm_mlp", "True", "--tune_mm_vision", "True"),
    "lora": (*LORA, "--lora_dropout", "0.1"),
    "lora and merger": (*LORA, "--lora_dropout", "0.1", "--tune_mm_mlp", "True", "--mm_projector_lr", "5e-4"),
}


@pytest.mark.parametrize("flags", MODES.values(), ids=MODES)
def test_both_engines_give_the_same_losses_and_files(tree, tiny_model_dir, media, tmp_path, flags):
    rows = [record("<image>\nWhich?", f"number {number}", image=f"{'ab'[number % 2]}.png") for number in range(11)]
    rows.append(record("Which?", "none"))
    write_jsonl(media / "rows.jsonl", [{**row, "id": str(number)} for number, row in enumerate(rows)])
    for engine in ("upstream", "native"):
        train(tree, engine, tiny_model_dir("qwen3_vl"), media / "rows.jsonl", tmp_path / engine, "--max_steps", "10",
              "--save_steps", "5", *flags)
    first, second = losses(tmp_path / "upstream"), losses(tmp_path / "native")
    largest = max(abs(a - b) for a, b in zip(first, second, strict=True))
    print(f"largest loss difference over 10 steps: {largest:g}")
    assert len(first) == 10 and largest <= 1e-5

    def files(engine):
        return sorted(str(path.relative_to(tmp_path / engine)) for path in (tmp_path / engine).rglob("*"))

    assert files("upstream") == files("native")
