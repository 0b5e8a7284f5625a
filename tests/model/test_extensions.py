"""Extensions of a model travel with its checkpoint, and the plain model stays what plain transformers loads."""

import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from overlays import families
from overlays.errors import UserError
from overlays.model import extensions, load, parts


@pytest.fixture
def shift(monkeypatch):
    """A one-parameter extension at model.model.shift."""
    def attach(model, width):
        model.model.shift = nn.Linear(width, 1)

    module = ModuleType("shift_extension")
    module.attach = attach
    monkeypatch.setitem(sys.modules, "shift_extension", module)
    monkeypatch.setitem(extensions.EXTENSIONS, "shift", extensions.ExtensionRow("shift_extension", "model.shift."))


def test_an_extension_is_a_part_of_its_own(tiny_model_dir, shift):
    model = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    extensions.attach(model, {"shift": {"width": 3}})
    family = families.family_of(model.config)
    owned = [name for name, _ in model.named_parameters() if parts.part_of(name, family) == "additions"]
    assert owned == ["model.shift.weight", "model.shift.bias"]


def test_settings_and_weights_are_put_back_at_load(tiny_model_dir, shift, tmp_path):
    from safetensors.torch import save_file

    model = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    extensions.attach(model, {"shift": {"width": 3}})
    values = model.state_dict()
    added = {name: value for name, value in values.items() if extensions.owns(name)}
    model.save_pretrained(tmp_path, state_dict={name: values[name] for name in values if name not in added})
    save_file(added, tmp_path / load.TRAINED_PARTS)
    extensions.write(model, tmp_path)
    again = load.load_base(tmp_path, torch.float32)
    assert extensions.settings(again) == {"shift": {"width": 3}}
    assert torch.equal(again.model.shift.weight, model.model.shift.weight)
    assert not any(map(extensions.owns, load_file(tmp_path / "model.safetensors")))
    whole = (tmp_path / load.TRAINED_PARTS).read_bytes()
    (tmp_path / load.TRAINED_PARTS).write_bytes(whole[:-8])
    with pytest.raises(UserError, match="damaged or cut short"):
        load.load_base(tmp_path, torch.float32)
    (tmp_path / load.TRAINED_PARTS).unlink()
    with pytest.raises(UserError, match="does not hold model.shift.weight, which additions.json"):
        load.load_base(tmp_path, torch.float32)


def test_other_settings_and_unknown_names_are_refused(tiny_model_dir, shift, tmp_path):
    model = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    extensions.attach(model, {"shift": {"width": 3}})
    extensions.attach(model, {"shift": {"width": 3}})
    with pytest.raises(UserError, match="cannot be given"):
        extensions.attach(model, {"shift": {"width": 4}})
    with pytest.raises(UserError, match="unknown extension"):
        extensions.attach(model, {"shfit": {}})
    with pytest.raises(UserError, match="settings of shift do not fit"):
        extensions.attach(load.load_base(tiny_model_dir("qwen3_vl"), torch.float32), {"shift": {"high": 3}})
    (tmp_path / extensions.FILE).write_text("[1]")
    with pytest.raises(UserError, match="damaged"):
        extensions.read(tmp_path)
