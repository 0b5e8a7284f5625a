"""Preference optimisation (DPO) by TRL, on this project's samples.

The reference is the model that training starts from. It is never loaded twice: beside LoRA it is a frozen copy of the
adapter; where parts are trained in full its log-probabilities are computed once, before training.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import transformers
from trl import DPOTrainer

from overlays import registry, runs
from overlays.data.media import apply_resolution
from overlays.data.preferences import PreferenceCollator, PreferenceDataset, pair_table
from overlays.errors import UserError
from overlays.files import write_json
from overlays.model import extensions, load, parts
from overlays.train import run as shared
from overlays.train import sft
from overlays.train.trainer import Trainer, count_steps, log_once
from overlays.upstream import engine as engines

# What the loss is made of; a resumed run keeps it.
LOSS_FLAGS = ("loss_type", "loss_weights", "label_smoothing", "ld_alpha", "f_divergence_type",
              "f_alpha_divergence_coef", "use_weighting", "discopop_tau", "disable_dropout")
REFERENCE = "ref"  # TRL's name for the frozen copy of the adapter


class PreferenceTrainer(Trainer, DPOTrainer):
    """TRL's loss and metrics, this project's parts table, checkpoints and batches.

    Args:
        kept: plain names of parameters that lie beside the adapter in the checkpoint that training starts from; they
            are saved again, trained or not.
        Everything else as in `overlays.train.trainer.Trainer` and TRL.
    """

    def __init__(self, *args, kept: frozenset[str] = frozenset(), **options):
        self.kept, self._judged = kept, []
        super().__init__(*args, **options)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs, whatever their number of tokens
        self.loss_name = "preference loss"

    def sample_lengths(self):
        """Tokens of the longer answer of each pair."""
        return self.data_collator.sets["train"].lengths

    def count(self, batch):
        """(pairs, tokens) of a batch, which holds the chosen side of each pair and then the rejected."""
        samples, tokens = super().count(batch)
        return samples // 2, tokens

    def _prepare_dataset(self, dataset, *_):
        return dataset  # the collator makes tokens

    def create_model_card(self, *_, **__) -> None:
        """A run folder describes itself in run.json."""

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def _trained_beside_adapter(self) -> set[str]:
        carried = {name for name, _ in self.model.named_parameters() if parts.plain_name(name) in self.kept}
        return super()._trained_beside_adapter() | carried

    def _init_training_state(self, *args, **kwargs):
        result = super()._init_training_state(*args, **kwargs)
        self._total_train_tokens = self.state.num_input_tokens_seen  # TRL counts from 0 again
        return result

    def _save_checkpoint(self, model, trial):
        self.state.num_input_tokens_seen = int(self._total_train_tokens)
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # the reference is the model that training starts from; a resumed run has it
            shutil.rmtree(Path(output_dir or self.args.output_dir) / REFERENCE, ignore_errors=True)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """TRL's, and how many pairs its last accuracy and margin are a mean of."""
        result = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        metrics = self._metrics["eval"]
        self._judged.append((len(inputs["completion_mask"]) // 2, metrics["rewards/accuracies"][-1],
                             metrics["rewards/margins"][-1]))
        return result

    def judge(self) -> dict:
        """Preference accuracy and mean margin of the rewards over the validation pairs.

        A pair is right where the chosen answer gained more log-probability over the reference than the rejected one.
        """
        self._judged.clear()
        self.evaluate()
        pairs = sum(count for count, *_ in self._judged)
        accuracy, margin = (sum(row[0] * row[k] for row in self._judged) / pairs for k in (1, 2))
        return {"n": len(self.eval_dataset), "accuracy": round(accuracy, 6), "margin": round(margin, 6),
                "beta": self.beta}


@dataclass
class Run(sft.Run):
    """A run on preference pairs; its model may itself be a LoRA checkpoint, which is trained on or merged."""

    def load_model(self):
        """The model that training starts from, with its own adapter or a fresh one where --lora_enable asks for one."""
        return start_model(self.model_args, self.training)

    def new_trainer(self, model, callbacks: list) -> PreferenceTrainer:
        """TRL's trainer on tables that name pairs, and the collator that opens them."""
        sets = {"train": self.train_set} | ({"eval": self.eval_set} if self.eval_set else {})
        with self.training.main_process_first(desc="naming pairs"):
            tables = {split: pair_table(split, pairs) for split, pairs in sets.items()}
        again = None
        if not self.training.lora_enable and not self.training.precompute_ref_log_probs:
            again = start_model(self.model_args, self.training).requires_grad_(False)
        return PreferenceTrainer(
            model=model, ref_model=again, args=self.training, processing_class=self.processor, callbacks=callbacks,
            rates=self.learning_rates, kept=load.full_parameter_names(self.model_args.model_name_or_path),
            data_collator=PreferenceCollator(self.processor, sets), train_dataset=tables["train"],
            eval_dataset=tables.get("eval"),
        )

    def write_final(self, trainer: PreferenceTrainer, folder: Path) -> None:
        """As for any run; the preference accuracy on the validation pairs goes into preferences.json."""
        metrics = trainer.judge() if self.eval_set else None
        super().write_final(trainer, folder)
        if metrics and self.training.process_index == 0:
            write_json(folder / "preferences.json", metrics)
        if metrics:
            log_once(f"preference accuracy {metrics['accuracy']:.3f} on {metrics['n']} validation pairs, mean margin "
                     f"{metrics['margin']:.3f} (beta {metrics['beta']:g})")


def start_model(model_args, training):
    """The model of a full or LoRA checkpoint, in its type of weights; merged where no adapter is asked for."""
    name = model_args.model_name_or_path
    if load.adapter_base(load.locate(name)) is None:
        model = sft.load_model(model_args, training, {})
    else:
        model = load.load_model(name, None, model_args.attn_implementation, sft.weight_dtype(training),
                                training.cache_dir, **sft.quantized(training))
        if training.lora_enable:
            model.peft_config["default"].inference_mode = False
        else:
            model = model.merge_and_unload()
    return model


def prepare(model_args, data, training) -> Run:
    """Everything that can be wrong is looked at here, before weights are loaded and a folder is made.

    Raises:
        UserError: model, pairs or processor cannot be had, flags that do not go together, or the run folder belongs to
            another run.
    """
    name = model_args.model_name_or_path
    if "regression" in extensions.read(load.locate(name)):
        raise UserError(f"{name} answers with a regression head; preferences are between answers in words: start from "
                        "a model trained with --head none")
    config = load.load_config(load.adapter_base(load.locate(name)) or name, training.cache_dir)
    rates = parts.learning_rates(sft.view(model_args, training))
    rates["additions"] = training.additions_lr or 0.0
    if not any(rates.values()):
        raise UserError("nothing is trained: set --lora_enable, --tune_mm_llm, --tune_mm_mlp or --tune_mm_vision True")
    if model_args.head != "none" or data.data_flatten or data.data_packing:
        raise UserError("preferences are between answers in words, padded: --head, --data_flatten and --data_packing "
                        "do not fit")
    if training.cache_vision:
        raise UserError("--cache_vision is for python -m overlays.train; preference optimisation does not take it")
    moves = sorted(part for part, rate in rates.items() if rate and part != "adapter")
    if training.precompute_ref_log_probs is None:
        training.precompute_ref_log_probs = bool(moves)
    if training.lora_enable and moves and not training.precompute_ref_log_probs:
        raise UserError(f"{', '.join(moves)} would move in the reference as well, which is the same model without its "
                        "adapter: use --precompute_ref_log_probs True, or train the adapter alone")
    if load.adapter_base(load.locate(name)) is None:
        sft.check_lora_modules(config, training)
    own = sft.identity(model_args, data, training, config, rates) | {
        "beta": training.beta, "preference loss": {flag: getattr(training, flag) for flag in LOSS_FLAGS}
    }
    resume = runs.checkpoint_to_resume(Path(training.output_dir), training.resume, own)
    processor = load.load_processor(name, training.cache_dir)
    options = sft.media_options(data)
    apply_resolution(processor, options)

    def build(names: str) -> PreferenceDataset:
        return PreferenceDataset(
            registry.resolve(names), processor, parts.position_function(config), options, seed=training.seed,
            model_max_length=training.model_max_length, on_bad_sample=data.on_bad_sample,
        )

    with training.main_process_first(desc="reading data"):
        train_set = build(data.dataset_use)
        eval_set = build(data.eval_dataset) if data.eval_dataset else None
    sft.fit_thinking(processor, data, train_set)
    runs.check_steps(resume, count_steps(training, len(train_set)))
    engine = engines.choose("native", {})
    return Run(model_args, data, training, engine, own, resume, processor, train_set, eval_set, None, config, rates, {})


def train(model_args, data, training) -> None:
    """One run from flags to run folder."""
    transformers.set_seed(training.seed)
    with shared.exclusive(training):
        shared.native(prepare(model_args, data, training))
