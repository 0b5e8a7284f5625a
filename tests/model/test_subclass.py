"""A model that the overlay extended can be copied, averaged and pickled like any other."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.optim.swa_utils import AveragedModel

from overlays import families
from overlays.errors import UserError
from overlays.model import extensions, forward, load, parts
from overlays.model.spatial import WithCoordinates

SPATIAL = {"method": "sin3d_pe", "position_encoding_dim": 0, "voxel_size_m": 0.1, "max_depth_m": 10.0}
WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "average": lambda model: AveragedModel(model).module,
}


def inputs(config):
    ids = torch.randint(5, 60, (2, 16), generator=torch.Generator().manual_seed(1))
    ids[:, 4:8] = config.image_token_id
    patch = config.vision_config.patch_size
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == ids[0, 4]).int(),
        "pixel_values": torch.randn(32, 6 * patch**2, generator=torch.Generator().manual_seed(2)),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]), "labels": ids,
    }


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_copies_compute_with_their_own_weights(tiny_model_dir, family, adapted):
    model = load.load_base(tiny_model_dir(family), torch.float32).eval()
    extensions.attach(model, {"spatial": SPATIAL})
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules=parts.lora_target_pattern(model.config))).eval()
    batch = inputs(model.config)
    with torch.no_grad():
        before = model(**batch).loss
        copies = {way: make(model) for way, make in WAYS.items()}
        for parameter in model.parameters():
            parameter.mul_(0.5)
        assert not torch.isclose(model(**batch).loss, before, atol=1e-4)
        for way, made in copies.items():
            assert torch.equal(made(**batch).loss, before), way
            base = made.get_base_model() if adapted else made
            assert isinstance(base, forward.SupervisedLoss) and isinstance(base.model, WithCoordinates)
            assert made.generate(input_ids=batch["input_ids"][:1, :4], max_new_tokens=2).shape[1] <= 6


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_processor_can_be_copied_and_pickled(tiny_model_dir, family):
    processor = load.load_processor(tiny_model_dir(family))
    for made in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert made.chat_template == processor.chat_template
        assert made.tokenizer("alunite")["input_ids"] == processor.tokenizer("alunite")["input_ids"]


def test_the_class_keeps_the_name_that_a_checkpoint_carries(tiny_model_dir, tmp_path):
    model = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    model.save_pretrained(tmp_path)
    assert load.load_config(tmp_path).architectures == ["Qwen3VLForConditionalGeneration"]


def test_an_argument_that_the_library_does_not_take_is_refused(tiny_model_dir, monkeypatch):
    def forward_of_5_17(self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None,
                        image_grid_thw=None, video_grid_thw=None, mm_token_type_ids=None, **kwargs):
        raise AssertionError("must not run")

    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    monkeypatch.setattr(Qwen3VLModel, "forward", forward_of_5_17)
    with pytest.raises(UserError, match="Qwen3VLModel does not take mm_encoder_outputs"):
        load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)


def test_a_key_of_a_batch_that_no_forward_reads_is_refused(tiny_model_dir):
    model = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    with pytest.raises(TypeError, match="does not read depth_map"):
        model(**inputs(model.config), depth_map=torch.zeros(1))


def test_pixels_without_a_place_in_the_text_are_not_taken_for_the_dummy(tiny_model_dir):
    model = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    batch = inputs(model.config)
    batch["input_ids"] = torch.full_like(batch["input_ids"], 7)
    with pytest.raises(ValueError):
        model(**batch)
