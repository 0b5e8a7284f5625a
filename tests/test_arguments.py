"""Flags: upstream's names, near misses, YAML files."""

import pytest

from overlays import arguments
from overlays.errors import UserError

NEEDED = ["--model_name_or_path", "m", "--dataset_use", "d", "--report_to", "none"]


def test_upstreams_flags_are_known(tmp_path):
    model, data, training = arguments.parse([
        *NEEDED, "--tune_mm_llm", "True", "--tune_mm_mlp", "True", "--tune_mm_vision", "False",
        "--data_flatten", "True", "--data_packing", "False", "--max_pixels", "50176", "--min_pixels", "784",
        "--video_max_frames", "8",
        "--video_min_frames", "4",
        "--video_max_pixels", "1304576", "--video_min_pixels", "200704", "--video_fps", "2",
        "--base_interval", "2",
        "--model_max_length", "4096", "--mm_projector_lr", "1e-5", "--vision_tower_lr", "1e-6",
        "--lora_enable", "True", "--lora_r", "8", "--lora_alpha", "16", "--lora_dropout", "0.0",
        "--cache_dir", str(tmp_path), "--optim", "adamw_torch", "--output_dir", str(tmp_path),
    ])
    assert model.tune_mm_llm and data.data_flatten and training.lora_dropout == 0.0
    assert training.remove_unused_columns is False


def test_an_unknown_flag_names_the_nearest():
    with pytest.raises(UserError, match="--learning_rat; did you mean --learning_rate"):
        arguments.parse([*NEEDED, "--learning_rat", "1"])


def test_a_flag_is_not_abbreviated():
    with pytest.raises(UserError, match="--lora_en"):
        arguments.parse([*NEEDED, "--lora_en", "True"])


def test_a_bad_value_is_one_sentence():
    with pytest.raises(UserError, match="lora_r"):
        arguments.parse([*NEEDED, "--lora_r", "eight"])


def test_yaml_gives_flags_and_the_command_line_wins(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model_name_or_path: m\ndataset_use: [a, b%50]\nlora_r: 4\nreport_to: none\nlearning_rate: 1e-4\n")
    _, data, training = arguments.parse([str(file), "--lora_r", "2"])
    assert data.dataset_use == "a,b%50"
    assert (training.lora_r, training.learning_rate) == (2, 1e-4)


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["tensorboard"])
    arguments.parse([*NEEDED, "--report_to", "tensorboard"])
    with pytest.raises(UserError, match="wandb needs a package .* pip install wandb"):
        arguments.parse([*NEEDED, "--report_to", "wandb"])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", None])
def test_a_bad_yaml_file_is_named(tmp_path, text):
    file = tmp_path / "c.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match="c.yaml"):
        arguments.parse([str(file)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--on_bad_sample", "replace"], "stop or skip"),
        (["--report_to", "paper"], "does not know 'paper'"),
        (["--min_pixels", "900", "--max_pixels", "800"], "min_pixels"),
        (["--lora_enable", "True", "--lora_r", "0"], "lora_r"),
        (["--eval_strategy", "steps", "--eval_steps", "5"], "eval_dataset"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        arguments.parse([*NEEDED, *flags])


@pytest.mark.parametrize("words", ["--per_device_train_batch_size 0", "--gradient_accumulation_steps 0", "--seed -1",
                                   "--learning_rate -1", "--lora_dropout 2"])
def test_a_number_out_of_its_range_is_named(words):
    with pytest.raises(UserError, match=words.split()[0]):
        arguments.parse([*NEEDED, *words.split()])
