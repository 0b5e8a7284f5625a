"""Run folders: which checkpoint is complete, which run is newest, what a resumed run must share."""

import os
from argparse import Namespace

import pytest

from overlays import manifest, runs
from overlays.domains.base import training_sources
from overlays.errors import UserError
from overlays.files import write_json
from overlays.train import arguments
from overlays.train import run as train_run


def checkpoint(run, step, complete=True):
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    if complete:
        manifest.write(folder)
    return folder


def test_only_complete_checkpoints_count_and_by_number(tmp_path):
    first, last = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, complete=False)
    (first / manifest.NAME).rename(first / "whole")  # as earlier versions marked it
    assert runs.checkpoints(tmp_path) == [first, last]
    assert runs.clean(tmp_path, all_checkpoints=False) == ["checkpoint-11"]


def test_resume_takes_the_newest_and_refuses_another_model(tmp_path):
    write_json(tmp_path / "run.json", {"identity": {"model": {"name": "a"}, "data": {"d": "1"}}})
    assert runs.checkpoint_to_resume(tmp_path, "auto", {"model": {"name": "b"}}) is None  # nothing to resume yet
    newest = checkpoint(tmp_path, 3)
    same = {"model": {"name": "a"}, "data": {"d": "1"}}
    assert runs.checkpoint_to_resume(tmp_path, "auto", same) == newest
    assert runs.checkpoint_to_resume(tmp_path, "never", {"model": {"name": "b"}}) is None
    with pytest.raises(UserError, match="another model .name: a then, b now"):
        runs.checkpoint_to_resume(tmp_path, "auto", {**same, "model": {"name": "b"}})
    with pytest.raises(UserError, match="another data"):
        runs.checkpoint_to_resume(tmp_path, "auto", {**same, "data": {"d": "2"}})
    with pytest.raises(UserError, match="not the folder of a complete checkpoint"):
        runs.checkpoint_to_resume(tmp_path, str(tmp_path / "checkpoint-99"), same)


def test_a_model_without_checkpoints_is_not_trained_over_with_other_flags(tmp_path):
    write_json(tmp_path / "run.json", {"identity": {"rates": {"adapter": 0.1}}})
    (tmp_path / "config.json").write_text("{}")
    assert runs.checkpoint_to_resume(tmp_path, "auto", {"rates": {"adapter": 0.1}}) is None
    with pytest.raises(UserError, match="another rates .adapter: 0.1 then, 0.2 now"):
        runs.checkpoint_to_resume(tmp_path, "auto", {"rates": {"adapter": 0.2}})


def test_starting_over_leaves_nothing_of_the_old_model(tmp_path):
    old = ["config.json", "adapter_config.json", "adapter_model.safetensors", "model-00001-of-00002.safetensors",
           "model.safetensors.index.json", "trained_parts.safetensors", "additions.json"]
    for name in [*old, "run.json"]:
        (tmp_path / name).write_text("{}")
    checkpoint(tmp_path, 3)
    assert runs.clean(tmp_path, all_checkpoints=True) == ["checkpoint-3"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def final(run, steps, **contents):
    """The final model of a run, complete in its hidden folder and not yet swapped in."""
    folder = runs.start_final(run)
    for name, text in {"config.json": "{}", **contents}.items():
        (folder / name.replace("__", ".")).write_text(text)
    write_json(folder / "trainer_state.json", {"global_step": steps})
    manifest.write(folder)


def test_a_run_has_ended_when_its_final_model_has_taken_its_steps(tmp_path):
    last = checkpoint(tmp_path, 4)
    write_json(last / "trainer_state.json", {"global_step": 4})
    assert not runs.has_taken(tmp_path, last, 4)  # killed before the model was written
    final(tmp_path, 2)
    assert not runs.has_taken(tmp_path, last, 4)  # killed when the run of 2 steps had been continued
    final(tmp_path, 4)
    assert runs.has_taken(tmp_path, last, 4) and runs.has_taken(tmp_path, None, 4)  # with and without checkpoints
    assert not runs.has_taken(tmp_path, last, 5) and not runs.has_taken(tmp_path, last, 4, "never")


def test_a_run_of_an_earlier_version_has_ended_by_its_newest_checkpoint(tmp_path):
    last = checkpoint(tmp_path, 4)
    write_json(last / "trainer_state.json", {"global_step": 4})
    (tmp_path / "config.json").write_text("{}")
    assert runs.has_taken(tmp_path, last, 4) and not runs.has_taken(tmp_path, None, 4)
    assert not runs.has_taken(tmp_path, last, 5)


def test_a_swap_of_models_that_was_interrupted_anywhere_is_completed(tmp_path, monkeypatch):
    replace, stop = os.replace, 0

    def interrupted(source, target):
        nonlocal stop
        stop -= 1
        if not stop:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    for point in range(1, 6):
        run = tmp_path / str(point)
        final(run, 6, model__safetensors="six", **{"added.json": "6"})
        runs.complete_swap(run)
        final(run, 12, model__safetensors="twelve", adapter_config__json="{}")
        stop = point
        with pytest.raises(KeyboardInterrupt):
            runs.complete_swap(run)
        stop = 0
        assert runs.has_model(run)
        assert sorted(path.name for path in run.iterdir()) == [
            "adapter_config.json", "config.json", "manifest.json", "model.safetensors", "trainer_state.json"]
        assert (run / "model.safetensors").read_text() == "twelve"
        runs.check_model(run)


def test_a_swap_is_the_first_process_and_a_manifest_that_was_lost_with_the_power_is_none(tmp_path, monkeypatch):
    final(tmp_path, 6)
    monkeypatch.setenv("RANK", "1")
    assert not runs.has_model(tmp_path)
    monkeypatch.delenv("RANK")

    def refused(run):
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr(runs, "complete_swap", refused)
        assert not runs.has_model(tmp_path)
    with train_run.exclusive(Namespace(output_dir=str(tmp_path), process_index=0)):
        assert (tmp_path / "config.json").is_file() and not (tmp_path / runs.FINAL).exists()
    final(tmp_path, 7)
    (tmp_path / runs.FINAL / manifest.NAME).write_bytes(b"")
    assert runs.has_model(tmp_path) and runs._steps_of(tmp_path) == 6
    last = checkpoint(tmp_path, 3)
    (last / manifest.NAME).write_bytes(b"")
    assert not runs.checkpoints(tmp_path) and runs.clean(tmp_path, all_checkpoints=False) == [last.name]


def test_the_oldest_checkpoints_go_but_not_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
    runs.rotate(tmp_path, 2, str(tmp_path / "checkpoint-2"))
    assert [path.name for path in runs.checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    runs.rotate(tmp_path, 1, str(tmp_path / "checkpoint-2"))
    assert len(runs.checkpoints(tmp_path)) == 2
    runs.rotate(tmp_path, 1, None)
    assert [path.name for path in runs.checkpoints(tmp_path)] == ["checkpoint-4"]


def test_what_a_kill_kept_from_being_removed_goes_at_the_next_start(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
        write_json(tmp_path / f"checkpoint-{step}" / runs.STATE,
                   {"global_step": step, "best_model_checkpoint": "there/checkpoint-2"})
    runs.rotate_before(tmp_path, tmp_path / "checkpoint-3", 1)  # a run that goes back keeps what came after
    runs.rotate_before(tmp_path, None, 1)
    assert len(runs.checkpoints(tmp_path)) == 4
    runs.rotate_before(tmp_path, tmp_path / "checkpoint-4", 2)
    assert [path.name for path in runs.checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]


def test_a_final_model_without_its_manifest_is_removed_by_the_next_training(tmp_path):
    write_json(runs.start_final(tmp_path) / "config.json", {})
    with train_run.exclusive(Namespace(output_dir=str(tmp_path), process_index=0)):
        assert not (tmp_path / runs.FINAL).exists()


def test_a_checkpoint_that_was_not_written_to_its_end_is_no_model(tmp_path):
    write_json(tmp_path / "run.json", {})
    with pytest.raises(UserError, match="checkpoint-7 is not complete"):
        runs.check_model(checkpoint(tmp_path, 7, complete=False))
    with pytest.raises(UserError, match="no file .*trainer_state.json"):
        runs.check_steps(checkpoint(tmp_path, 8), 9)


def test_the_newest_run_of_the_domain_is_found(tmp_path):
    for number, (name, data) in enumerate([("a", "cuprite_train"), ("b", "cuprite_train"), ("c", "gui_train")]):
        write_json(tmp_path / name / "run.json", {"data": {"train": [{"name": data}]}})
        (tmp_path / name / "adapter_config.json").write_text("{}")
        os.utime(tmp_path / name / "run.json", (number, number))
    assert runs.find_checkpoint(None, tmp_path, "cuprite").name == "b"
    assert runs.find_checkpoint(None, tmp_path).name == "c"
    with pytest.raises(UserError, match="no finished driving run"):
        runs.find_checkpoint(None, tmp_path, "driving")
    with pytest.raises(UserError, match="no checkpoint folder"):
        runs.find_checkpoint(str(tmp_path / "nowhere"), tmp_path)


def flags(*words):
    return arguments.parse(["--model_name_or_path", "m", "--dataset_use", "d", "--report_to", "none", *words])[2]


@pytest.mark.parametrize(("words", "name"), [
    ("--per_device_train_batch_size 4", "sample order .samples_per_step: 8 then, 4 now"),
    ("--train_sampling_strategy sequential", "sample order"),
    ("--model_max_length 100", "sample order"),
    ("--data_seed 1", "sample order"),
    ("--dataloader_drop_last True", "sample order"),
    ("--optim adafactor", "optimizer"),
    ("--lr_scheduler_type cosine", "schedule"),
    ("--bf16 True", "precision"),
])
def test_what_decides_samples_or_optimizer_is_kept_on_resume(tmp_path, words, name):
    write_json(tmp_path / "run.json", {"identity": runs.settings_identity(flags())})
    checkpoint(tmp_path, 3)
    with pytest.raises(UserError, match=f"another {name}"):
        runs.checkpoint_to_resume(tmp_path, "auto", runs.settings_identity(flags(*words.split())))


@pytest.mark.parametrize("words", [
    "--per_device_train_batch_size 2 --gradient_accumulation_steps 4", "--weight_decay 0.1 --adam_beta1 0.8",
    "--max_steps 9 --warmup_steps 2", "--save_steps 7 --logging_steps 3", "--gradient_checkpointing True",
])
def test_other_settings_may_change_on_resume_and_old_runs_have_none(tmp_path, words):
    last, identity = checkpoint(tmp_path, 3), runs.settings_identity(flags(*words.split()))
    for before in (runs.settings_identity(flags()), {"seed": 42}):
        write_json(tmp_path / "run.json", {"identity": before})
        assert runs.checkpoint_to_resume(tmp_path, "auto", identity) == last


def test_groups_of_like_length_depend_on_the_batch_itself(tmp_path):
    write_json(tmp_path / "run.json", {"identity": runs.settings_identity(
        flags("--train_sampling_strategy", "group_by_length"))})
    checkpoint(tmp_path, 3)
    with pytest.raises(UserError, match="another sample order"):
        runs.checkpoint_to_resume(tmp_path, "auto", runs.settings_identity(flags(
            "--train_sampling_strategy", "group_by_length", "--per_device_train_batch_size", "4",
            "--gradient_accumulation_steps", "2")))


def test_a_checkpoint_that_cannot_be_continued_is_refused(tmp_path):
    last = checkpoint(tmp_path, 4)
    write_json(last / "trainer_state.json", {"global_step": 4})
    runs.check_steps(None, 1)
    runs.check_steps(last, 4)
    with pytest.raises(UserError, match="has taken 4 steps, more than the 3"):
        runs.check_steps(last, 3)
    with pytest.raises(UserError, match="no optimizer state"):
        runs.check_steps(last, 5)
    for name, lacking in (("optimizer.pt", "state of the schedule"), ("scheduler.pt", "state of the random numbers")):
        (last / name).write_bytes(b"")
        with pytest.raises(UserError, match=lacking):
            runs.check_steps(last, 5)
    (last / "rng_state.pth").write_bytes(b"")
    runs.check_steps(last, 5)


@pytest.mark.parametrize("text", ["{", "[1]", '{"parts": [1]}', '{"parts": [{}]}', "[" * 100_000])
def test_a_damaged_run_json_is_one_sentence(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match="run.json is damaged"):
        runs.read_run(tmp_path)


@pytest.mark.parametrize("text", ['{"data": null}', '{"data": {"train": null}}', '{"identity": null, "parts": null}'])
def test_what_run_json_leaves_empty_is_as_if_it_were_not_there(tmp_path, text):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text(text)
    with pytest.raises(UserError, match="no "):
        runs.find_checkpoint(None, tmp_path)
    assert training_sources(tmp_path / "mine") == [] and "identity" not in runs.read_run(tmp_path / "mine")
