"""Labels of GUI records, frozen parts, and the personal stage: small adapters, resumable, on an unchanged base."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from overlays import predict
from overlays.data import chat, records
from overlays.data.media import MediaOptions, apply_resolution
from overlays.domains.gui import adapters, personal, train_personal
from overlays.domains.gui.prepare import Settings, prepare
from overlays.domains.gui.users import of_users
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl
from overlays.model import load
from overlays.samples.gui import write
from overlays.train.trainer import Trainer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gui-personal")
    write(folder / "raw", users=[1, 11, 74], episodes={"test": 2, "train": 1, "val": 1}, steps=2, workers=1)
    prepare(Settings(raw=folder / "raw", output=folder / "data", screenshot_pixels=5000,
                     train_users=("11",), val_users=("74",), test_users=("1",)))
    return folder / "data"


def test_labels_are_the_answer_and_its_end_token(data, tiny_model_dir):
    processor = load.load_processor(tiny_model_dir("qwen3_vl"))
    apply_resolution(processor, MediaOptions(min_pixels=4096, max_pixels=8192))
    tokenizer = processor.tokenizer
    for record in records.read(data / "test.jsonl"):
        record = record | {"conversations": [{"from": "system", "value": "Be short."}, *record["conversations"]]}
        found = chat.encode(record, processor, data)
        labels = found["labels"][found["labels"] != -100].tolist()
        said = record["conversations"][-1]["value"]
        assert labels == [*tokenizer(said, add_special_tokens=False)["input_ids"],
                          tokenizer.convert_tokens_to_ids("<|im_end|>")]
        text = tokenizer.decode(found["input_ids"])
        assert text.startswith("<|im_start|>system\nBe short.<|im_end|>")


SMALL = ["--num_train_epochs", "1", "--learning_rate", "1e-2", "--warmup_steps", "0", "--lora_r", "2",
         "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--min_pixels", "4096",
         "--max_pixels", "8192"]


def train(data, base, output, *words):
    """The command of the personal stage; what it prints of its folds."""
    train_personal.main(["--checkpoint", str(base), "--data", str(data), "--output_dir", str(output), "--folds", "2",
                         "--folds_by", "episode", "--max_new_tokens", "4", *SMALL, *words])


def test_folds_train_small_adapters_once_and_leave_the_base_alone(data, tiny_model_dir, tmp_path, monkeypatch, capsys):
    base = tiny_model_dir("qwen3_vl")
    train(data, base, tmp_path)
    assert capsys.readouterr().out.count("2 taps, loss ") == 2
    folder = tmp_path / "user_1/episode_fold_0"
    assert {row["id"] for rows in personal.read(tmp_path)[0].values() for row in rows} == \
        {record["id"] for record in records.read(data / "test.jsonl")}

    model, _ = load.load_for_inference(folder)
    plain, _ = load.load_for_inference(base)
    own = dict(model.named_parameters())
    for name, value in plain.named_parameters():  # vision, merger and language model: bit for bit
        stem, _, last = f"base_model.model.{name}".rpartition(".")
        same = own.get(f"{stem}.{last}", own.get(f"{stem}.base_layer.{last}"))
        assert torch.equal(same, value), name
    trained = [name for name in own if ".lora_" in name]
    assert trained and all("language_model" in name for name in trained)
    assert any(own[name].abs().max() > 0 for name in trained if "lora_B" in name)
    metrics = json.loads((folder / personal.DONE).read_text())

    def fail(*_):
        raise AssertionError("a finished fold was trained again")

    monkeypatch.setattr(adapters, "_train", fail)
    train(data, base, tmp_path)
    assert capsys.readouterr().out.count("done before") == 2
    (folder / personal.DONE).unlink()  # as a kill leaves it
    with pytest.raises(AssertionError, match="trained again"):
        train(data, base, tmp_path)
    monkeypatch.undo()
    train(data, base, tmp_path)  # from the start, and the same
    assert json.loads((folder / personal.DONE).read_text()) == metrics


def test_a_fold_goes_on_from_its_checkpoint_and_with_the_answers_that_are_missing(data, tiny_model_dir, tmp_path,
                                                                                  monkeypatch):
    base, words, steps, asked = tiny_model_dir("qwen3_vl"), ["--num_train_epochs", "2"], [], []
    train(data, base, tmp_path / "uninterrupted", *words)
    taken, answered = Trainer.training_step, predict.answer_batch

    def training_step(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return taken(self, *args, **kwargs)

    def answer_batch(model, processor, prompts, *args):
        asked.append(len(prompts["input_ids"]))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answered(model, processor, prompts, *args)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    monkeypatch.setattr(predict, "answer_batch", answer_batch)
    for _ in range(2):  # in the second step of training, in the second batch of answers
        with pytest.raises(KeyboardInterrupt):
            train(data, base, tmp_path / "run", "--eval_batch_size", "1", *words)
    assert steps == [0, 1, 1] and asked == [1, 1]
    train(data, base, tmp_path / "run", "--eval_batch_size", "1", *words)
    assert steps == [0, 1, 1, 0, 1] and asked == [1, 1, 1, 1, 1]
    for fold in ("user_1/episode_fold_0", "user_1/episode_fold_1"):
        for name in (personal.DONE, personal.ROWS):
            texts = [(tmp_path / run / fold / name).read_text() for run in ("run", "uninterrupted")]
            assert texts[0] == texts[1]
        assert not list((tmp_path / "run" / fold).glob("checkpoint-*"))


@pytest.mark.parametrize(("words", "sentence"), [
    (["--lora_r", "0"], "--lora_r must be at least 1"), (["--num_train_epochs", "0"], "--num_train_epochs must be"),
    (["--folds", "1"], "--folds must be at least 2"), (["--learning_rate", "nan"], "--learning_rate must be"),
    (["--weight-decay", "-1"], "--weight_decay must be"), (["--leraning_rate", "1"], "did you mean --learning.rate"),
    (["--tune_mm_vision", "True"], "--tune_mm_vision is not a flag of the personal stage"),
    (["--dataset_use", "gui_train"], "--dataset_use is not a flag of the personal stage"),
    (["--resume", "outputs/x"], "takes --resume auto or never"), (["stray"], "unexpected word 'stray'"),
])
def test_flags_that_a_fold_cannot_follow_are_one_sentence(data, tiny_model_dir, tmp_path, words, sentence):
    with pytest.raises(UserError, match=sentence):
        train(data, tiny_model_dir("qwen3_vl"), tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_flags_win_over_a_recipe_of_ones_own(data, tiny_model_dir, tmp_path):
    (tmp_path / "own.yaml").write_text("lora_enable: true\nlora_r: 3\nseed: 5\n")
    values = adapters.read_flags(["--config", str(tmp_path / "own.yaml"), "--seed", "6"], tmp_path)
    assert (values["lora_r"], values["seed"], values["save_strategy"]) == (3, 6, "steps")
    values = adapters.read_flags([], tmp_path)
    assert (values["lora_r"], values["seed"], values["learning_rate"]) == (8, 42, 2e-5)


def test_an_adapter_on_an_adapter_is_found(data, tiny_model_dir, tmp_path):
    """A user's adapter whose base is the global adapter answers as the two together."""
    from peft import LoraConfig, get_peft_model

    base = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    torch.manual_seed(0)
    for name, below in (("global", str(tiny_model_dir("qwen3_vl"))), ("own", str(tmp_path / "global"))):
        model = get_peft_model(base, LoraConfig(r=2, target_modules="model.language_model.*q_proj",
                                                init_lora_weights=False, base_model_name_or_path=below))
        model.peft_config["default"].base_model_name_or_path = below
        model.save_pretrained(tmp_path / name)
        base = model.merge_and_unload()
    again = load.load_model(tmp_path / "own").merge_and_unload()
    ids = torch.arange(5)[None]
    assert torch.allclose(again(input_ids=ids).logits, base(input_ids=ids).logits, atol=1e-5)


def test_a_folder_without_folds_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no finished fold"):
        personal.check_finished(tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_and_the_fold(data, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: SimpleNamespace(training_loss=float("nan")))
    with pytest.raises(UserError, match="user 1, episode fold 1 of 2: the loss became nan: lower the learning rate"):
        train(data, tiny_model_dir("qwen3_vl"), tmp_path)
    assert personal.read(tmp_path)[1] == ["user_1/episode_fold_0", "user_1/episode_fold_1"]


def rows_of(users, episodes, root):
    for episode in range(episodes):
        Image.new("RGB", (60, 60)).save(root / f"{episode}.png")
    return [{"id": f"{user}-{episode}", "user": user, "episode": f"e{episode}", "image": f"{episode}.png",
             "grid": [5, 5], "question": "q", "answer": "a"} for user in users for episode in range(episodes)]


def finish(job, output, identities):
    write_jsonl(output / job.name / personal.ROWS, [row | {"prediction": "[5, 5]\u2028"} for row in job.test])
    write_json(output / job.name / personal.DONE, {"identity": identities[job.name], "n": len(job.test)})


def begin(rows, root, settings, said):
    work = personal.jobs(rows, settings)
    identities = {job.name: personal.identity(job, settings, {"lora_r": 8}, "base", root) for job in work}
    personal.begin(root, root / "global", identities, said.append)
    return work, identities


def test_only_folds_of_the_last_run_are_read(tmp_path):
    settings, said = personal.Settings(folds=3, kinds=("episode",)), []
    for users in ([1], [2]):  # one after the other, in the same way: both stay
        work, identities = begin(rows_of(users, 6, tmp_path), tmp_path, settings, said)
        for job in work:
            finish(job, tmp_path, identities)
    assert len(personal.read(tmp_path)[0]["episode"]) == 12 and not personal.read(tmp_path)[1] and not said
    assert personal.checkpoint_of(tmp_path) == str(tmp_path / "global")

    (tmp_path / "user_2" / "own_notes").mkdir()
    work, identities = begin(rows_of([1], 6, tmp_path), tmp_path, replace(settings, folds=2), said)
    assert "removed 6 folds" in said[0] and (tmp_path / "user_2" / "own_notes").is_dir()
    with pytest.raises(UserError, match="holds no finished fold"):
        personal.check_finished(tmp_path)
    finish(work[0], tmp_path, identities)
    finish(work[1], tmp_path, identities)
    file = tmp_path / work[1].name / personal.ROWS
    file.write_text(file.read_text()[:-20])  # cut short
    assert len(personal.read(tmp_path)[0]["episode"]) == 3
    assert personal.read(tmp_path)[1] == ["user_1/episode_fold_1"]


def test_a_fold_of_other_records_or_pictures_is_not_done(tmp_path):
    rows, settings = rows_of([1], 4, tmp_path), personal.Settings(folds=2, kinds=("sample",))
    work, identities = begin(rows, tmp_path, settings, [])
    finish(work[0], tmp_path, identities)

    def done(changed):
        job = personal.jobs(changed, settings)[0]
        identity = personal.identity(job, settings, {"lora_r": 8}, "base", tmp_path)
        return personal.finished(tmp_path / job.name, identity) is not None

    assert done(rows) and not done([row | {"answer": "b"} for row in rows])
    Image.new("RGB", (60, 60), "red").save(tmp_path / "0.png")
    assert not done(rows)
    (tmp_path / "user_1" / "sample_fold_0" / personal.DONE).write_text("[]")
    assert not done(rows)


def test_a_user_with_few_episodes_is_left_out_and_told(tmp_path):
    said, settings = [], personal.Settings(folds=3)
    work = personal.jobs(rows_of([1], 1, tmp_path) + rows_of(["anna"], 3, tmp_path), settings, said.append)
    assert {job.user for job in work} == {"anna"} and len(work) == 6
    assert said == ["note: user 1 has 1 episode, too few for folds; left out"]
    with pytest.raises(UserError, match="no user can be divided into 3 folds: user 1 has 1 episode"):
        personal.jobs(rows_of([1], 1, tmp_path), settings, said.append)


def test_users_are_chosen_by_number_or_name(tmp_path, capsys):
    rows = rows_of([1, 2, "anna"], 1, tmp_path)
    assert [row["user"] for row in of_users(rows, ["1-3", "anna"], tmp_path)] == [1, 2, "anna"]
    assert "no taps of user 3" in capsys.readouterr().err
    assert of_users(rows, None, tmp_path) == rows
    for wrong in ({"id": None}, {"episode": None}, {"user": "../x"}):
        with pytest.raises(UserError, match="a record .* prepare it with"):
            of_users([rows[0] | wrong], None, tmp_path)


def test_an_interrupted_global_run_is_no_global_model(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    environment |= {"DRY_RUN": "1", "CUDA_VISIBLE_DEVICES": "", "GLOBAL": str(tmp_path), "GRAD_ACCUM": "3",
                    "LORA_DROPOUT": "0.5", "WEIGHT_DECAY": "0.5"}

    def commands():
        return subprocess.run(["bash", "scripts/train_gui_personal.sh"], cwd=ROOT, env=environment, check=True,
                              capture_output=True, text=True).stdout

    (tmp_path / "checkpoint-5").mkdir()
    line = next(line for line in commands().split("\n") if "train_gui_global.sh" in line)
    assert {"GRAD_ACCUM", "LORA_DROPOUT", "WEIGHT_DECAY", "LR", "LORA_R"} <= set(line.split())
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "train_gui_global.sh" not in commands()
