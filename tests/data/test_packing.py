"""Packed rows: as full as they get, the same everywhere, and with the loss of the samples they are made of."""

import json
import math

import numpy as np
import pytest
import torch

from overlays.data.packing import PackedDataset, pack
from overlays.errors import UserError
from overlays.train import arguments, sft
from overlays.upstream import engine
from tests.test_invariance import PACKING, Case, annotation, words  # noqa: F401  (a fixture)


def test_rows_are_full_and_hold_each_sample_once():
    noise = np.random.default_rng(0)
    lengths = np.minimum(noise.lognormal(5.5, 0.6, 5000).astype(int) + 20, 2000)
    visual = (lengths * noise.uniform(0, 0.9, 5000)).astype(int)
    rows = pack(lengths, visual, 2048, 0)
    assert sorted(sample for row in rows for sample in row) == list(range(5000))
    sums = np.array([lengths[row].sum() for row in rows])
    assert sums.max() <= 2048 and len(rows) <= 1.01 * math.ceil(lengths.sum() / 2048)
    seen = np.array([visual[row].sum() for row in rows])
    assert seen.max() <= 1.25 * 2048 * visual.sum() / lengths.sum() + visual.max()
    assert rows == pack(lengths, visual, 2048, 0) != pack(lengths, visual, 2048, 1)


def test_a_row_has_no_more_than_its_share_of_the_pictures():
    lengths, visual = [100] * 40, [90] * 20 + [0] * 20
    rows = pack(lengths, visual, 1000, 0)
    assert max(sum(visual[sample] for sample in row) for row in rows) <= 1.25 * 1000 * 0.45


@pytest.mark.parametrize("family", PACKING)
def test_packed_rows_have_the_loss_and_gradients_of_padded_samples(family, tiny_model_dir, annotation, tmp_path):  # noqa: F811
    found = {}
    flags = {"padded": ["--data_flatten", "False"], "packed": ["--data_packing", "True", "--model_max_length", "400"]}
    for name, words_of in flags.items():
        case = Case(tiny_model_dir(family), annotation, tmp_path / name, *words_of)
        data = case.run.train_set
        assert isinstance(data, PackedDataset) == (name == "packed")
        batch = case.run.collator([data[i] for i in range(len(data))])
        tokens = case.trainer._get_num_items_in_batch([batch], torch.device("cpu"))
        case.trainer.current_gradient_accumulation_steps = 1
        loss = float(case.trainer.training_step(case.model, batch, tokens))
        found[name] = loss, {key: value.grad for key, value in case.model.named_parameters() if value.grad is not None}
    assert found["packed"][0] == pytest.approx(found["padded"][0], rel=1e-5)
    largest = max(float(value.abs().max()) for value in found["padded"][1].values())
    for key, value in found["padded"][1].items():
        assert (found["packed"][1][key] - value).abs().max() < 1e-5 * largest, key


def test_a_packed_run_counts_samples_and_goes_on_where_it_stopped(tiny_model_dir, annotation, tmp_path):  # noqa: F811
    def losses(name, *flags):
        parsed = arguments.parse(words(tiny_model_dir("qwen3_vl"), annotation, tmp_path / name, "--data_packing",
                                       "True", "--model_max_length", "400", "--per_device_train_batch_size", "1",
                                       "--logging_steps", "1", "--save_steps", "1", "--use_cpu", "True", *flags))
        sft.train(*parsed)
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return [row["loss"] for row in state if "loss" in row], state[-1]

    once, last = losses("once", "--max_steps", "2")
    assert last["train_samples_per_second"] * last["train_runtime"] > 2.5  # samples, of which a row has several
    losses("twice", "--max_steps", "1")
    assert losses("twice", "--max_steps", "2")[0] == once


def test_packing_is_refused_where_rows_would_mix_samples(tiny_model_dir, annotation, tmp_path):  # noqa: F811
    parsed = arguments.parse(words(tiny_model_dir("qwen3_5"), annotation, tmp_path / "run", "--data_packing", "True"))
    with pytest.raises(UserError, match="--data_packing does not fit qwen3_5"):
        sft.prepare(*parsed, engine.choose("native", {}))
