"""Flags: upstream's names, near misses, YAML files; read before a library is imported."""

import dataclasses
import pickle
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import transformers
from transformers import HfArgumentParser, integrations

from overlays.errors import UserError
from overlays.train import arguments, inherited, library

ROOT = Path(__file__).resolve().parents[2]
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


LLAMA_FACTORY = """
model_name_or_path: Qwen/Qwen2.5-VL-7B-Instruct
trust_remote_code: false
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: all
dataset: scenes_train
template: qwen2_vl
cutoff_len: 4096
image_max_pixels: 262144
overwrite_cache: true
preprocessing_num_workers: 16
flash_attn: sdpa
freeze_multi_modal_projector: false
output_dir: saves/x
per_device_train_batch_size: 1
learning_rate: 1.0e-4
resume_from_checkpoint: null
report_to: none
"""


def test_a_file_of_llama_factory_is_read(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(LLAMA_FACTORY)
    values = arguments.read([str(file)], arguments.SFT)
    assert (values["lora_enable"], values["lora_r"], values["lora_target_modules"]) == (True, 16, "")
    assert (values["dataset_use"], values["model_max_length"], values["max_pixels"]) == ("scenes_train", 4096, 262144)
    assert (values["tune_mm_vision"], values["tune_mm_mlp"], values["tune_mm_llm"]) == (False, True, False)
    assert values["attn_implementation"] == "sdpa"
    assert "template, overwrite_cache, preprocessing_num_workers" in "".join(capsys.readouterr())
    file.write_text(LLAMA_FACTORY.replace("finetuning_type: lora", "finetuning_type: full"))
    values = arguments.read([str(file)], arguments.SFT)
    assert (values["lora_enable"], values["tune_mm_llm"], values["tune_mm_vision"]) == (False, True, False)


def test_what_a_file_of_llama_factory_leaves_out_has_its_defaults(tmp_path):
    file = tmp_path / "c.yaml"
    shortest = "model_name_or_path: m\nstage: sft\ndataset: d\noutput_dir: o\nreport_to: none\n"
    expected = {"lora_enable": True, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0, "model_max_length": 2048,
                "max_pixels": 589824, "min_pixels": 1024, "video_max_pixels": 65536, "video_min_pixels": 256,
                "video_fps": 2, "video_max_frames": 128, "learning_rate": 5e-5, "num_train_epochs": 3,
                "per_device_train_batch_size": 8, "tune_mm_llm": False, "tune_mm_vision": False, "tune_mm_mlp": False}
    for text, changed in (("", {}), ("lora_rank: 16\n", {"lora_r": 16, "lora_alpha": 32}),
                          ("lora_rank: 4\nlora_alpha: 4\n", {"lora_r": 4, "lora_alpha": 4})):
        file.write_text(shortest + text)
        values = arguments.read([str(file)], arguments.SFT)
        assert {name: values[name] for name in expected} == expected | changed
    file.write_text(shortest + "lora_rank: eight\n")
    with pytest.raises(UserError, match="lora_r"):
        arguments.read([str(file)], arguments.SFT)


def test_all_keys_without_a_counterpart_are_named_at_once(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(LLAMA_FACTORY.replace("stage: sft", "stage: dpo") + "val_size: 0.1\nuse_galore: true\n")
    with pytest.raises(UserError, match="LLaMA-Factory.*stage: dpo, val_size, use_galore; take them out"):
        arguments.read([str(file)], arguments.SFT)
    file.write_text("model_name_or_path: m\nlorar: 4\nlearningrate: 1\n")
    with pytest.raises(UserError, match="keys that are not flags: lorar, learningrate"):
        arguments.read([str(file)], arguments.SFT)


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(integrations, "get_available_reporting_integrations", lambda: ["tensorboard"])
    training = arguments.parse([*NEEDED, "--report_to", "tensorboard"])[2]
    assert training.report_to == ["tensorboard"]
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
        (["--on_bad_sample", "replace"], "--on_bad_sample.*'stop', 'skip'"),
        (["--report_to", "paper"], "does not know 'paper'"),
        (["--min_pixels", "900", "--max_pixels", "800"], "min_pixels"),
        (["--lora_enable", "True", "--lora_r", "0"], "lora_r"),
        (["--eval_strategy", "steps", "--eval_steps", "5"], "eval_dataset"),
        (["--cache_vision", "True", "--tune_mm_vision", "True"], "leave out --tune_mm_vision"),
        (["--cache_vision", "True", "--samples_per_file", "2"], "--no_augment True"),
        (["--cache_vision", "True", "--deepspeed", "scripts/zero3.json"],
         "--cache_vision does not go with --deepspeed"),
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


def test_the_table_names_every_flag_of_the_libraries():
    trl = pytest.importorskip("trl")
    assert not inherited.SUPPORTED & inherited.REFUSED.keys()
    for kind in (transformers.TrainingArguments, trl.DPOConfig):
        names = {field.name for field in dataclasses.fields(kind)}
        assert not names - inherited.SUPPORTED - inherited.REFUSED.keys()


def test_a_flag_of_a_newer_library_is_refused_once_it_is_given():
    newer = dataclasses.make_dataclass("Newer", [("new_flag", int, 0)], bases=(transformers.TrainingArguments,))
    newer.__module__ = "transformers.training_args"
    values = {name: field.default for name, field in newer.__dataclass_fields__.items()} | {"optim": "adamw_torch"}
    assert newer.__dataclass_fields__.keys() - inherited.SUPPORTED - inherited.REFUSED.keys() == {"new_flag"}
    inherited.check(newer, values, dict(values))  # not given
    with pytest.raises(UserError, match="does not know --new_flag"):
        inherited.check(newer, values | {"new_flag": 1}, values)


OTHERS = {"hub_strategy": "end", "include_for_metrics": "loss", "label_names": "x", "liger_kernel_config": None,
          "parallelism_config": None, "debug": "underflow_overflow", "length_column_name": "n"}


def test_every_refused_flag_is_one_sentence_that_names_it():
    fields = {field.name: field for field in dataclasses.fields(arguments.TrainingArguments)}
    tried = 0
    for name in inherited.REFUSED.keys() & fields.keys():
        default = fields[name].default
        value = OTHERS.get(name, not default if isinstance(default, bool) else "1")
        if value is not None:  # argparse itself refuses the others, whose values no command line can give
            with pytest.raises(UserError, match=f"^--{name} is not supported: "):
                arguments.parse([*NEEDED, f"--{name}", str(value)])
            tried += 1
    assert tried > 35


EVALUATED = "--eval_dataset d --eval_strategy epoch --save_strategy epoch"


@pytest.mark.parametrize(("words", "message"), [
    ("--load_best_model_at_end True --save_strategy no", "--load_best_model_at_end needs --eval_strategy"),
    ("--save_strategy best", "--save_strategy best needs --eval_strategy"),
    ("--metric_for_best_model loss", "--metric_for_best_model loss needs --eval_strategy"),
    ("--head vision --tune_mm_vision True --metric_for_best_model r2", "r2 needs --eval_strategy"),
    ("--eval_steps 5", "--eval_steps needs --eval_strategy"),
    ("--eval_on_start True", "--eval_on_start needs --eval_dataset"),
    (f"{EVALUATED} --load_best_model_at_end True --metric_for_best_model accuracy", "evaluation gives loss"),
    (f"{EVALUATED} --load_best_model_at_end True --greater_is_better True --metric_for_best_model loss", "worst model"),
    ("--optim adamw_bnb_8bit", "needs a package that is not installed: .* pip install bitsandbytes"),
    ("--optim lomo", "--optim lomo is not supported"),
    ("--optim sgd --optim_args momentm=0.9", "takes momentum=VALUE"),
    ("--optim sgd --adam_beta1 0.8", "--optim sgd does not read it"),
    ("--optim sgd --optim_args momentum=x", "--optim sgd cannot be used"),
    ("--lr_scheduler_type constant --warmup_steps 5", "no warm-up"),
    ("--lr_scheduler_type constant --warmup_ratio 0.1", "no warm-up"),
    ("--lr_scheduler_type cosine_with_min_lr", "min_lr_rate should be set"),
    ("--lr_scheduler_kwargs {x", "--lr_scheduler_kwargs {x is not JSON"),
    ("--warmup_steps 5 --warmup_ratio 0.1", "two names of one setting"),
    ("--gradient_checkpointing True --gradient_checkpointing_kwargs {\"reentrant\":true}", "does not know 'reentrant'"),
    ("--dataloader_num_workers 0 --dataloader_persistent_workers True", "needs --dataloader_num_workers above 0"),
    ("--train_sampling_strategy batch_rebalance", "use group_by_length"),
    ("--max_steps 0", "a model that has learned nothing"),
    ("--num_train_epochs 0", "a model that has learned nothing"),
    ("--save_steps 0", "--save_steps must be above 0"),
    ("--adam_beta2 1", "--adam_beta2 must be"),
    ("--deepspeed nowhere.json", "--deepspeed nowhere.json cannot be read"),
    ("--deepspeed {\"optimizer\":{}}", "its own optimizer"),
    ("--resume never --resume_from_checkpoint x", "contradict each other"),
    ("--group_by_length True", "use --train_sampling_strategy group_by_length"),
    ("--ddp_backend gloo", "for several processes"),
    ("--project x", "--project needs --report_to trackio"),
])
def test_what_the_library_would_ignore_or_fail_on_later_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        arguments.parse([*NEEDED, *words.split()])


@pytest.mark.parametrize(("words", "message"), [
    ("--loss_type sigmod", "--loss_type does not know 'sigmod'"),
    ("--loss_type exo_pair", "needs --label_smoothing above 0"),
    ("--f_divergence_type kl", "--f_divergence_type is one of"),
    ("--lora_dropout 0.1", "has no effect, because --disable_dropout"),
    ("--max_length 100", "--max_length is not supported: nothing is cut"),
    ("--sync_ref_model True", "--sync_ref_model is not supported"),
    ("--label_smoothing_factor 0.1", "--label_smoothing_factor is not supported"),
    ("--max_steps 0", "learned nothing"),
])
def test_preference_flags_follow_the_same_rules(words, message):
    arguments.parse(NEEDED, arguments.DPO)
    with pytest.raises(UserError, match=message):
        arguments.parse([*NEEDED, *words.split()], arguments.DPO)


@pytest.mark.parametrize(("words", "message"), [
    ("--label_smoothing_factor 0.1", "--label_smoothing_factor is not supported"),
    ("--train_sampling_strategy group_by_length", "tiles are not padded"),
    ("--learning_rate 0", "learned nothing"),
    ("--max_steps 0", "learned nothing"),
    ("--load_best_model_at_end True", "needs --eval_strategy"),
    ("--eval_strategy epoch --metric_for_best_model r2", "evaluation gives loss"),
])
def test_pretraining_flags_follow_the_same_rules(words, message):
    with pytest.raises(UserError, match=message):
        arguments.parse([*NEEDED, *words.split()], arguments.MAE)


def test_resume_from_checkpoint_is_another_name_for_resume():
    assert arguments.parse([*NEEDED, "--resume_from_checkpoint", "run/checkpoint-3"])[2].resume == "run/checkpoint-3"
    assert arguments.parse([*NEEDED, "--resume_from_checkpoint", "True"])[2].resume == "auto"


@pytest.mark.parametrize(("metric", "greater"), [("mae", False), ("eval_r2", True), ("loss", False)])
def test_the_best_model_is_the_best_by_its_metric(metric, greater):
    words = f"{EVALUATED} --head vision --tune_mm_vision True --load_best_model_at_end True"
    training = arguments.parse([*NEEDED, *words.split(), "--metric_for_best_model", metric])[2]
    assert training.greater_is_better is greater


def test_a_mapping_in_a_yaml_file_is_a_json_object(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model_name_or_path: m\ndataset_use: d\nreport_to: none\nlr_scheduler_type: cosine_with_min_lr\n"
                    "lr_scheduler_kwargs: {min_lr_rate: 0.1}\n")
    assert arguments.parse([str(file)])[2].lr_scheduler_kwargs == {"min_lr_rate": 0.1}


def test_help_lists_choices(capsys):
    with pytest.raises(SystemExit) as stop:
        arguments.parse(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "{auto,upstream,native}" in shown and "--label_smoothing_factor" in shown


def test_the_page_names_every_refused_flag():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    missing = [name for name in inherited.REFUSED if f"`{name}`" not in page]
    assert not missing


STAGES = {"sft": arguments.SFT, "dpo": arguments.DPO, "mae": arguments.MAE}


@pytest.mark.parametrize("name", STAGES)
def test_flags_are_parsed_with_the_fields_of_the_library(name):
    """Names, defaults and, where the library lists values, these; read from its source without importing it."""
    stage = STAGES[name]
    read, real = (HfArgumentParser(kind) for kind in (arguments.flag_class(stage.training),
                                                      getattr(arguments, stage.training)))
    assert read._option_string_actions.keys() == real._option_string_actions.keys()
    for option, action in read._option_string_actions.items():
        other = real._option_string_actions[option]
        assert (action.default, action.nargs) == (other.default, other.nargs), option
        choices = [list(map(str, one.choices)) if one.choices else None for one in (action, other)]
        assert choices[0] == choices[1], option
        if action.choices is None and getattr(other.type, "__module__", "") == "builtins":
            assert action.type == other.type, option


def test_a_source_that_reads_otherwise_is_imported(monkeypatch):
    def fails(source):
        raise TypeError

    monkeypatch.setattr(library, "_compile", fails)
    library.fields_of.cache_clear()
    try:
        assert library.fields_of(library.TRAINING_ARGUMENTS) is transformers.TrainingArguments
    finally:
        library.fields_of.cache_clear()


def test_help_and_mistakes_import_no_library():
    """What answers at once: importing torch and the library's trainer takes five seconds."""
    code = """if True:
        import contextlib, io, sys
        from overlays.errors import UserError
        from overlays.train import arguments
        for stage in (arguments.SFT, arguments.DPO, arguments.MAE):
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
                arguments.parse(["--help"], stage)
            for words in (["--modell", "x"], ["--seed", "-1"], [], ["--model_name_or_path", "m"]):
                try:
                    arguments.parse(words, stage)
                except UserError as error:
                    print(error)
        heavy = {"torch", "transformers", "trl", "accelerate", "overlays.model", "overlays.data"}
        print(sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 13 and lines[0].startswith("unknown flag --modell; did you mean") and lines[-1] == "[]"


def test_a_configuration_can_be_named_by_a_flag(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model_name_or_path: m\ndataset_use: d\nseed: 3\n")
    for stage in STAGES.values():
        for words in (["--logging_steps", "5", "--config", str(file)], [f"--config={file}"], [str(file)]):
            assert arguments.read(words, stage)["seed"] == 3
        assert arguments.read(["--seed", "4", "--config", str(file)], stage)["seed"] == 4
    with pytest.raises(UserError, match="one configuration file can be given, not 2"):
        arguments.read([str(file), "--config", str(file)], arguments.SFT)
    with pytest.raises(UserError, match="--config needs"):
        arguments.read(["--config"], arguments.SFT)


def test_a_list_in_a_yaml_file_is_several_words_where_the_flag_takes_them(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model_name_or_path: m\ndataset_use: [a, b]\nloss_type: [sigmoid, sft]\nloss_weights: [1, 0.5]\n")
    values = arguments.read([str(file)], arguments.DPO)
    assert (values["dataset_use"], values["loss_type"], values["loss_weights"]) == ("a,b", ["sigmoid", "sft"], [1, 0.5])


def test_an_empty_word_takes_back_a_setting_of_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model_name_or_path: m\ndataset_use: d\neval_dataset: e\neval_strategy: epoch\n"
                    "metric_for_best_model: loss\n")
    words = ["--eval_dataset", "", "--eval_strategy", "no"]
    assert arguments.read([str(file), *words, "--metric_for_best_model", ""], arguments.SFT)["eval_dataset"] == ""
    with pytest.raises(UserError, match="--metric_for_best_model loss needs --eval_strategy"):
        arguments.read([str(file), *words], arguments.SFT)


def test_choices_of_flags_are_those_of_the_code():
    from transformers.trainer_utils import SaveStrategy
    from transformers.utils.logging import log_levels

    from overlays.model import channels

    hints = typing.get_type_hints(arguments.BaseModelArguments)
    assert set(typing.get_args(hints["channel_init"])) == set(channels.INITS)
    assert set(typing.get_args(arguments.LogLevel)) == {*log_levels, "passive"}
    assert [item.value for item in library.enum_of("SaveStrategy")] == [item.value for item in SaveStrategy]


def test_training_arguments_survive_being_pickled(tmp_path):
    for stage in STAGES.values():
        training = arguments.parse([*NEEDED, "--output_dir", str(tmp_path)], stage)[2]
        assert pickle.loads(pickle.dumps(training)).output_dir == str(tmp_path)
