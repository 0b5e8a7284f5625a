"""A folder is what its manifest says."""

import json
import os
import shutil

import pytest

from overlays import manifest, paths
from overlays.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model" / "global_step1").mkdir(parents=True)
    for name in ("model.safetensors", "global_step1/state.pt", "README.md"):
        (tmp_path / "model" / name).write_text(name)
    (tmp_path / "model" / "adapter_config.json").write_text('{"base_model_name_or_path": "a", "r": 4}')
    manifest.write(tmp_path / "model")
    return tmp_path / "model"


def test_every_file_but_the_card_is_listed(folder):
    assert set(manifest.read(folder)) == {"adapter_config.json", "global_step1/state.pt", "model.safetensors"}
    manifest.check(folder)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: (folder / "model.safetensors").unlink(), "is incomplete: model.safetensors"),
    (lambda folder: (folder / "model.safetensors").write_text("longer than before"), "18 bytes instead of 17"),
    (lambda folder: (folder / "model.safetensors").write_text("Model.safetensors"), "damaged: it has another checksum"),
    (lambda folder: shutil.rmtree(folder / "global_step1"), "incomplete: global_step1/state.pt"),
    (lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a", "r": 8}'),
     "adapter_config.json is damaged"),
    (lambda folder: (folder / manifest.NAME).write_text('{"files": {"a": 1}}'), "manifest.json is damaged"),
    (lambda folder: (folder / manifest.NAME).write_text("[" * 100_000), "manifest.json is damaged"),
    (lambda folder: (folder / manifest.NAME).write_text('{"files": {}}'), "damaged: it lists no file"),
])
def test_what_is_missing_or_changed_is_one_sentence(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        manifest.check(folder)


def test_what_is_not_needed_and_what_a_user_may_correct_is_not_compared(folder):
    shutil.rmtree(folder / "global_step1")
    (folder / "README.md").write_text("mine")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere", "r": 4}))
    manifest.check(folder, skip=lambda name: name.startswith("global_step"))


def test_an_edited_setting_of_a_final_model_is_a_warning_and_its_weights_are_not(folder, capsys):
    (folder / "model.safetensors.index.json").write_text("{}")
    manifest.write(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a", "r": 8, "mine": true}')
    for _ in range(2):
        manifest.check(folder, edited=True)
    assert capsys.readouterr().err.count("adapter_config.json changed after training") == 1
    for name in ("model.safetensors", "model.safetensors.index.json"):
        content = (folder / name).read_text()
        (folder / name).write_text(content.swapcase() + " ")
        with pytest.raises(UserError, match="or delete manifest.json if you changed it yourself"):
            manifest.check(folder, edited=True)
        (folder / name).write_text(content)


def test_only_the_first_process_reads_the_files_and_the_next_run_not_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    read = []
    monkeypatch.setattr(manifest, "_digest", lambda file, digest=manifest._digest: read.append(file) or digest(file))
    monkeypatch.setenv("RANK", "1")
    manifest.check(folder)
    monkeypatch.delenv("RANK")
    assert not read
    for file in folder.rglob("*"):
        os.utime(file, (1, 1))
    for _ in range(2):
        manifest.check(folder)
        manifest._checked.clear()  # as in a new process
    assert len(read) == 3
    os.utime(folder / "model.safetensors", (2, 2))
    manifest.check(folder)
    assert len(read) == 6


def test_a_folder_without_a_manifest_passes(tmp_path):
    assert manifest.read(tmp_path) is None
    manifest.check(tmp_path)
