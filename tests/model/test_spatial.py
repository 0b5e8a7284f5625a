"""3-D features: nothing at step 0, the right token after it, in training, in generation and after a reload."""

import math

import pytest
import torch
from torch import nn

from overlays import families, paths
from overlays.errors import UserError
from overlays.files import write_json
from overlays.model import extensions, load, parts, spatial

METHODS = ("sin3d_pe", "mlp_pe")
SETTINGS = {"position_encoding_dim": 0, "voxel_size_m": 2.0, "max_depth_m": 10.0}


def model_with(folder, method="sin3d_pe", **changes):
    model = load.load_base(folder, torch.float32)
    extensions.attach(model, {"spatial": {**SETTINGS, "method": method, **changes}})
    return model.eval()


def wake(model):
    """Weights as after some training: what started at 0 no longer is."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.model.spatial.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def batch(config, images=True, videos=False, rows=2):
    """Rows with an image of 2 x 3 tokens and/or a video of 2 x (2 x 2) tokens each."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (rows, 32), generator=generator)
    patch = config.vision_config.patch_size
    values, tokens = {}, 0
    if images:
        ids[:, 4:10] = config.image_token_id
        values["pixel_values"] = torch.randn(rows * 24, 6 * patch**2, generator=generator)
        values["image_grid_thw"] = torch.tensor([[1, 4, 6]] * rows)
        tokens += 6 * rows
    if videos:
        apart = 0 if config.model_type.startswith("qwen2") else 2  # newer families write the time between frames
        ids[:, 12:16] = ids[:, 16 + apart:20 + apart] = config.video_token_id
        values["pixel_values_videos"] = torch.randn(rows * 32, 6 * patch**2, generator=generator)
        values["video_grid_thw"] = torch.tensor([[2, 4, 4]] * rows)
        tokens += 8 * rows
    types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    return values | {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types,
        "position_ids": torch.arange(32).expand(3, rows, 32), "coordinates": places(tokens),
    }


def places(tokens):
    return torch.rand(tokens, 3, generator=torch.Generator().manual_seed(2)) * 4 + 0.1


def without(values, *names):
    return {key: value for key, value in values.items() if key not in names}


def captured(model, values):
    """The visual tokens that reach the text: (tokens, hidden), images first."""
    found = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs["inputs_embeds"].detach()), with_kwargs=True
    )
    with torch.no_grad():
        model(**values)
    hook.remove()
    ids = values["input_ids"]
    return torch.cat([found[0][ids == token] for token in (model.config.image_token_id, model.config.video_token_id)])


# ---- the encoding


def test_neighbours_differ_in_voxels_and_not_in_metres():
    def likeness(metres, unit):
        points = torch.tensor([[2.0, 1.5, 1.0], [2.0 + metres, 1.5, 1.0]]) / unit
        return float(torch.cosine_similarity(*spatial.position_encoding(points, 4096).split(1)))

    assert likeness(0.1, 1.0) > 0.9998
    assert likeness(0.1, 0.1) == pytest.approx(0.991, abs=0.003)
    assert likeness(1.0, 0.1) == pytest.approx(0.893, abs=0.01)


@pytest.mark.parametrize("dim", [128, 4096, 2560, 7])
def test_each_axis_has_its_own_block_and_the_rest_is_zero(dim):
    points = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 5.0]])
    waves = spatial.position_encoding(points, dim)
    width = dim // 6 * 2
    assert waves.shape == (2, dim) and not waves[:, 3 * width:].any()
    assert torch.equal(waves[0, :2 * width], waves[1, :2 * width])
    assert not torch.equal(waves[0, 2 * width:], waves[1, 2 * width:])
    assert waves[0, 0] == pytest.approx(math.sin(1.0), abs=1e-6)
    assert waves[0, width // 2] == pytest.approx(math.cos(1.0), abs=1e-6)


# ---- step 0


@pytest.mark.parametrize("family", families.FAMILIES)
def test_step_0_is_the_base_model_to_the_bit(tiny_model_dir, family):
    model = load.load_base(tiny_model_dir(family), torch.float32).eval()
    values = batch(model.config, videos=True)
    with torch.no_grad():
        expected = model(**without(values, "coordinates")).logits
        assert torch.equal(model(**values).logits, expected)  # a model without features does not mind coordinates
        extensions.attach(model, {"spatial": {**SETTINGS, "method": "mlp_pe"}})
        for method in reversed(METHODS):
            model.model.spatial = spatial.PROCESSORS[method](128, 128, 0.1)
            assert torch.equal(model.eval()(**values).logits, expected), method
            assert torch.equal(model.train()(**values).logits, expected), method
        assert torch.equal(model(**without(values, "coordinates")).logits, expected)


@pytest.mark.parametrize("method", METHODS)
def test_training_starts_from_zero_and_learns(tiny_model_dir, method):
    model = model_with(tiny_model_dir("qwen3_vl"), method).train()
    values = batch(model.config)
    values["labels"] = torch.where(values["mm_token_type_ids"] == 0, values["input_ids"], -100)
    loss = model(**values).loss
    loss.backward()
    first = model.model.spatial.scale if method == "sin3d_pe" else model.model.spatial.down.weight
    assert first.grad.abs().max() > 0
    optimizer = torch.optim.SGD(model.model.spatial.parameters(), 1.0)
    for _ in range(3):
        optimizer.step()
        model.zero_grad()
        after = model(**values).loss
        after.backward()
    assert after < loss
    assert all(parameter.grad.abs().max() > 0 for parameter in model.model.spatial.parameters())


def test_the_start_does_not_depend_on_what_was_drawn_before(tiny_model_dir):
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    one = model_with(tiny_model_dir("qwen3_vl"), "mlp_pe").model.spatial.up.weight
    torch.manual_seed(6)
    before = torch.random.get_rng_state()
    two = model_with(tiny_model_dir("qwen3_vl"), "mlp_pe").model.spatial.up.weight
    assert torch.equal(one, two) and torch.equal(before, torch.random.get_rng_state())
    torch.random.set_rng_state(state)


# ---- the right token


@pytest.mark.parametrize("family", families.FAMILIES)
def test_each_token_gets_what_its_own_coordinates_add(tiny_model_dir, family):
    model = wake(model_with(tiny_model_dir(family), "mlp_pe"))
    values = batch(model.config, videos=True)
    values["coordinates"][[3, 20]] = 0.0  # no depth there
    plain = captured(model, without(values, "coordinates"))
    with torch.no_grad():
        expected = model.model.spatial(values["coordinates"])
    expected[[3, 20]] = 0.0
    added = captured(model, values) - plain
    assert torch.allclose(added, expected, atol=1e-5)
    assert not added[[3, 20]].any() and added[4].any()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_features_come_out_row_by_row_of_the_image(tiny_model_dir, family):
    """Without attention a token depends on its own block alone: changing one block changes one token."""
    model = load.load_base(tiny_model_dir(family), torch.float32).eval()
    visual = model.model.visual
    visual.blocks = nn.ModuleList()
    patch, grid = model.config.vision_config.patch_size, torch.tensor([[1, 16, 20], [1, 4, 4]])
    pixels = torch.randn(320 + 16, 6 * patch**2, generator=torch.Generator().manual_seed(0))
    changed = pixels.clone()
    changed[4 * 37:4 * 38] += 1.0  # the 38th block of the processor's order: row 3, column 7
    with torch.no_grad():
        before, after = (torch.cat(list(model.model.get_image_features(x, grid, return_dict=True).pooler_output))
                         for x in (pixels, changed))
    assert (before != after).any(dim=-1).nonzero().flatten().tolist() == [37]


def test_deepstack_levels_stay_as_they_are(tiny_model_dir):
    model = wake(model_with(tiny_model_dir("qwen3_vl")))
    values = batch(model.config)
    with torch.no_grad():
        plain, placed = (
            model.model.get_image_features(values["pixel_values"], values["image_grid_thw"], return_dict=True, **extra)
            for extra in ({}, {"coordinates": values["coordinates"]})
        )
    for before, after in zip(plain.deepstack_features, placed.deepstack_features, strict=True):
        assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert not torch.equal(plain.pooler_output[0], placed.pooler_output[0])


def test_too_few_coordinates_are_refused(tiny_model_dir):
    model = model_with(tiny_model_dir("qwen3_vl"))
    values = batch(model.config)
    with pytest.raises(ValueError, match="11 coordinates for 12 visual tokens"):
        model(**values | {"coordinates": values["coordinates"][:-1]})


def test_padded_and_flattened_batches_agree(tiny_model_dir):
    from overlays.data.collate import FlattenedCollator, PaddedCollator

    folder = tiny_model_dir("qwen3_vl")
    model, processor = wake(model_with(folder)), load.load_processor(folder)
    whole = batch(model.config, videos=True)
    image, video = whole["coordinates"][:12].split(6), whole["coordinates"][12:].split(8)
    samples = []
    for row, length in enumerate((32, 27)):
        sample = {key: whole[key][row, :length] for key in ("input_ids", "mm_token_type_ids")}
        sample["labels"] = torch.where(sample["mm_token_type_ids"] == 0, sample["input_ids"], -100)
        sample["position_ids"] = torch.arange(length).expand(3, length)
        for key, count in (("pixel_values", 24), ("pixel_values_videos", 32)):
            sample[key] = whole[key].split(count)[row]
        sample["image_grid_thw"], sample["video_grid_thw"] = whole["image_grid_thw"][:1], whole["video_grid_thw"][:1]
        samples.append(sample | {"coordinates": torch.cat([image[row], video[row]])})
    del samples[0]["coordinates"]  # no scene: nothing is added there
    with torch.no_grad():
        padded, flat = (model(**collator(processor)(samples))
                        for collator in (PaddedCollator, FlattenedCollator))
        bare = model(**without(PaddedCollator(processor)(samples), "coordinates"))
    assert torch.allclose(padded.loss, flat.loss, atol=1e-5)
    assert not torch.allclose(padded.loss, bare.loss, atol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model_dir):
    model = wake(model_with(tiny_model_dir("qwen3_vl"), "mlp_pe")).train()
    values = batch(model.config)
    values["labels"] = torch.where(values["mm_token_type_ids"] == 0, values["input_ids"], -100)

    def gradients():
        model.zero_grad()
        model(**values).loss.backward()
        return [parameter.grad.clone() for parameter in model.model.spatial.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(plain, gradients(), strict=True))


# ---- generation


def generate(model, values, **options):
    with torch.no_grad():
        return model.generate(**without(values, "position_ids"), max_new_tokens=6, do_sample=False,
                              eos_token_id=None, pad_token_id=0, **options)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_generation_uses_the_coordinates_of_every_image_and_video(tiny_model_dir, family):
    model = wake(model_with(tiny_model_dir(family)))
    values = batch(model.config, videos=True)
    moved = values | {"coordinates": values["coordinates"] + torch.tensor([1.3, 0.4, -0.05])}

    def first_logits(batch):
        out = generate(model, batch, output_logits=True, return_dict_in_generate=True)
        return out.logits[0]

    with torch.no_grad():
        expected = model(**without(values, "position_ids")).logits[:, -1]
    assert torch.allclose(first_logits(values), expected, atol=1e-4)
    assert not torch.allclose(first_logits(values), first_logits(moved), atol=1e-3)
    uncached = generate(model, values, use_cache=False)
    assert torch.equal(generate(model, values), uncached)


def test_beams_and_several_answers_see_the_same_scene(tiny_model_dir):
    model = wake(model_with(tiny_model_dir("qwen3_vl")))
    values = batch(model.config, videos=True)
    both = generate(model, values, num_beams=2, num_return_sequences=2)
    for row in range(2):
        alone = {key: value[row:row + 1] for key, value in values.items()
                 if key in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")}
        alone |= {"pixel_values": values["pixel_values"].split(24)[row],
                  "pixel_values_videos": values["pixel_values_videos"].split(32)[row],
                  "coordinates": torch.cat([values["coordinates"][:12].split(6)[row],
                                            values["coordinates"][12:].split(8)[row]])}
        single = generate(model, alone, num_beams=2, num_return_sequences=2)
        assert torch.equal(both[2 * row:2 * row + 2], single)


# ---- checkpoints


def trainer(model, folder, rates):
    from transformers import TrainingArguments

    from overlays.train.trainer import Trainer

    arguments = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True, remove_unused_columns=False)
    return Trainer(model=model, args=arguments, rates=rates)


RATES = dict.fromkeys(parts.PARTS, 0.0) | {"adapter": 1e-3, "additions": 1e-3}


@pytest.mark.parametrize(("method", "lora"), [("sin3d_pe", True), ("mlp_pe", True), ("mlp_pe", False)])
def test_saved_with_adapter_or_model_and_answers_the_same(tiny_model_dir, tmp_path, method, lora):
    model = model_with(tiny_model_dir("qwen3_vl"), method)
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(
            r=4, target_modules=parts.lora_target_pattern(model.config), task_type="CAUSAL_LM", init_lora_weights=False,
            base_model_name_or_path=str(tiny_model_dir("qwen3_vl")),
        ))
    base = model.get_base_model() if lora else model
    wake(base)
    parts.set_trainable(model, model.config, RATES)
    owned = {row.part: row.trainable for row in parts.table(model, model.config, RATES)}
    assert owned["additions"] == sum(p.numel() for p in base.model.spatial.parameters())
    trainer(model, tmp_path, RATES)._save(str(tmp_path))
    again = load.load_model(tmp_path).eval()
    assert extensions.settings(again) == {"spatial": {**SETTINGS, "method": method}}
    values = batch(base.config, videos=True)
    model.eval()
    with torch.no_grad():
        assert torch.equal(again(**values).logits, model(**values).logits)
    assert torch.equal(generate(again, values), generate(model, values))
    assert not torch.equal(again(**values).logits, again(**without(values, "coordinates")).logits)


# ---- own methods, wrong flags


def test_an_own_method_is_one_class(tiny_model_dir, monkeypatch):
    monkeypatch.setattr(spatial, "PROCESSORS", dict(spatial.PROCESSORS))

    @spatial.register("height")
    class Height(nn.Module):
        """The height alone, through one layer."""

        def __init__(self, hidden_size, position_encoding_dim, voxel_size_m):
            super().__init__()
            self.layer = nn.Linear(1, hidden_size)

        def forward(self, coordinates):
            return self.layer(coordinates[:, 2:])

    model = model_with(tiny_model_dir("qwen3_vl"), "height")
    values = batch(model.config)
    added = captured(model, values) - captured(model, without(values, "coordinates"))
    assert torch.allclose(added, model.model.spatial(values["coordinates"]), atol=1e-5)


def test_base_adds_nothing_to_the_model(tiny_model_dir):
    assert spatial.settings("base") is None
    assert spatial.settings("sin3d_pe") == {**SETTINGS, "method": "sin3d_pe"}


@pytest.mark.parametrize(("flags", "words"), [
    ({"method": "sin3d"}, "did you mean sin3d_pe"), ({"method": "voxels"}, "unknown; there are base, sin3d_pe, mlp_pe"),
    ({"position_encoding_dim": 3}, "at least 6"), ({"voxel_size_m": 0.0}, "voxel_size_m must be above 0"),
    ({"max_depth_m": -1.0}, "max_depth_m must be above 0"),
])
def test_wrong_flags_are_one_sentence(flags, words):
    with pytest.raises(UserError, match=words):
        spatial.settings(**{"method": "mlp_pe", **flags})


def test_an_encoding_wider_than_the_model_is_refused(tiny_model_dir):
    with pytest.raises(UserError, match="above the model's hidden size 128"):
        model_with(tiny_model_dir("qwen3_vl"), "sin3d_pe", position_encoding_dim=256)
    added = captured(wake(model_with(tiny_model_dir("qwen3_vl"), "mlp_pe", position_encoding_dim=256)),
                     batch(load.load_config(tiny_model_dir("qwen3_vl"))))
    assert added.shape == (12, 128)


def flags_of(file, *more):
    from overlays.train import arguments

    return arguments.parse([f"scripts/configs/{file}", *more])


@pytest.mark.parametrize(("file", "method"), [
    ("qwen3vl_3d_lora_sft.yaml", None), ("qwen3vl_3d_sin3dpe_lora_sft.yaml", "sin3d_pe"),
    ("qwen3vl_3d_mlp_lora_sft.yaml", "mlp_pe"),
])
def test_configurations_say_what_their_names_say(file, method, monkeypatch):
    from overlays.train import sft

    monkeypatch.chdir(paths.ROOT)
    model_args, data, training = flags_of(file, "--bf16", "False")
    found = sft.spatial_settings(model_args, training)
    assert (found and found["method"]) == method
    assert data.dataset_use == "scenes_train" and training.lora_enable and model_args.tune_mm_mlp


def test_flags_that_a_start_contradicts_are_refused(tmp_path, monkeypatch):
    from overlays.train import sft

    monkeypatch.chdir(paths.ROOT)
    (tmp_path / extensions.FILE).write_text('{"spatial": {"method": "mlp_pe"}}')
    model_args, _, training = flags_of("qwen3vl_3d_lora_sft.yaml", "--bf16", "False", "--model_name_or_path",
                                       str(tmp_path))
    with pytest.raises(UserError, match="has 3-D features .mlp_pe.: give --use_3d_features True"):
        sft.spatial_settings(model_args, training)

    class NoScenes(list):
        record = list.__getitem__

    model_args, _, training = flags_of("qwen3vl_3d_sin3dpe_lora_sft.yaml", "--bf16", "False")
    with pytest.raises(UserError, match='no training record has a "scene"'):
        sft.wanted_extensions(model_args, training, NoScenes([{"image": "a.jpg"}]))


def test_answers_are_given_with_the_features_a_model_has(tiny_model_dir, tmp_path, monkeypatch):
    from PIL import Image

    from overlays import predict
    from overlays.data import geometry

    Image.new("RGB", (96, 64), (90, 20, 160)).save(tmp_path / "a.png")
    record = {"image": "a.png", "scene": {"metadata": "m.npz", "frames": [0]},
              "conversations": [{"from": "human", "value": "<image>\nWhere?"}]}
    asked = []
    monkeypatch.setattr(geometry, "token_coordinates", lambda record, sample, processor, root, far, reader: (
        asked.append(far) or places(int(sample["image_grid_thw"].prod()) // 4).numpy()
    ))
    folder = tiny_model_dir("qwen3_vl")
    processor = load.load_processor(folder)
    plain = predict.answer(load.load_base(folder, torch.float32).eval(), processor, record, tmp_path, 4)
    assert not asked
    model = model_with(folder, max_depth_m=6.0)
    assert predict.answer(model, processor, record, tmp_path, 4) == plain and asked == [6.0]
    with torch.no_grad():
        model.model.spatial.scale.fill_(50.0)
    added = []
    model.model.spatial.register_forward_hook(lambda module, given, out: added.append(float(out.abs().max())))
    predict.predict(model, processor, [record], tmp_path, 1, 4, tmp_path / "out.jsonl")
    assert asked == [6.0, 6.0] and max(added) > 1


@pytest.mark.parametrize("resumed", [False, True])
def test_training_on_goes_on_in_the_form_of_before_version_0_2(tmp_path, monkeypatch, resumed):
    from overlays.train import sft

    monkeypatch.chdir(paths.ROOT)
    old = {key: value for key, value in spatial.settings("mlp_pe").items() if key != "metres"}
    write_json(tmp_path / extensions.FILE, {} if resumed else {"spatial": old})
    write_json(tmp_path / "run.json", {"identity": {"feature_processing": old}} if resumed else {})
    for resume, metres in (("auto", False), ("never", resumed)):
        model_args, _, training = flags_of(
            "qwen3vl_3d_mlp_lora_sft.yaml", "--bf16", "False", "--model_name_or_path", str(tmp_path), "--output_dir",
            str(tmp_path), "--resume", resume)
        assert ("metres" in sft.spatial_settings(model_args, training)) == metres


def test_mlp_pe_gets_metres_beside_the_sines_and_old_checkpoints_do_not():
    coordinates = torch.tensor([[0.5, 1.0, 2.0], [0.5 + 4 * torch.pi, 1.0, 2.0]])
    module = spatial.LearnedEncoding(12, 12, 2.0)
    torch.nn.init.ones_(module.down.weight)
    assert "metres" not in module.state_dict() and not module.metres
    module.up.weight.data[:, :-3] = 0
    assert module(coordinates)[0].equal(module(coordinates)[1])  # its last channels hold nothing that tells them apart
    module.metres = True
    assert not module(coordinates)[0].allclose(module(coordinates)[1])
    assert spatial.settings("mlp_pe")["metres"] is True and "metres" not in spatial.settings("sin3d_pe")
