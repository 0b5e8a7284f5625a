"""Trainer subclass: parameter groups from the parts table, complete checkpoints, what a checkpoint holds."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from peft import PeftModel
from safetensors.torch import save_file
from transformers.trainer_pt_utils import LengthGroupedSampler

from overlays import families, manifest, plotting, runs
from overlays.data import collate
from overlays.errors import UserError
from overlays.files import atomic_path, free_bytes, named_errors
from overlays.model import adapters, card, extensions, parts, unloaded
from overlays.model.load import TRAINED_PARTS, load_trained_parts

WORDS_LOSS = "loss per supervised token (nats)"
PLOT_SECONDS = 60  # at most one plot of the losses in so long, beside that of the end


@contextlib.contextmanager
def _changed(args, **values):
    """Training arguments with other values for the time of a call."""
    before = {name: getattr(args, name) for name in values}
    for name, value in values.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)


@contextlib.contextmanager
def _reading_state(checkpoint):
    """What libraries raise about a damaged state of a checkpoint (a cut file, a pickle with code) as one sentence."""
    try:
        yield
    except (UserError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if checkpoint is None:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{checkpoint} has a damaged training state ({reason}): use --resume with an earlier "
                        "checkpoint, or --resume never to start over") from error


def _is_lora(model) -> bool:
    return isinstance(model, PeftModel)  # a plain model that was loaded through an adapter has a peft_config too


class SeededLengthSampler(LengthGroupedSampler):
    """Samples of like length together, in an order that seed and epoch decide: the same on every rank and on resume.

    Args:
        lengths: tokens of each sample.
        epoch: gives the epoch that begins.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int, epoch: Callable[[], int]):
        super().__init__(batch_size, lengths=[int(length) for length in lengths])
        self.seed, self.epoch = seed, epoch

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return super().__iter__()


class Trainer(transformers.Trainer):
    """transformers' Trainer with one learning rate for each part, which resumes with the settings of this start.

    Args:
        rates: learning rate by part, see `parts.learning_rates`.
        Everything else as in transformers.
    """

    def __init__(self, *args, rates: dict[str, float], **kwargs):
        super().__init__(*args, **kwargs)
        self.rates = rates
        regression = "regression" in extensions.settings(self.model)
        self.loss_name = "squared error of normalised targets" if regression else WORDS_LOSS
        # The installed forward divides by the token count of the whole optimisation step (see model/forward.py).
        self.model_accepts_loss_kwargs = True
        self._epoch = 0
        self._used, self._tokens, self._waited = 0, 0, 0.0  # samples, tokens, seconds without a batch; of this start
        self._drawn = time.monotonic()

    def sample_lengths(self) -> Sequence[int]:
        """Tokens of each training sample, as measured when the data set was read."""
        return self.train_dataset.lengths

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        # The library's own would open every sample to measure it, and its order would not be that of a resumed run.
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SeededLengthSampler(self.args.train_batch_size * self.args.gradient_accumulation_steps,
                                   self.sample_lengths(), seed, lambda: self._epoch)

    def _get_eval_sampler(self, eval_dataset):
        with _changed(self.args, train_sampling_strategy="random"):  # the order of validation changes nothing
            return super()._get_eval_sampler(eval_dataset)

    def _get_dataloader(self, *args, is_training=False, **kwargs):
        with _changed(self.args, dataloader_drop_last=self.args.dataloader_drop_last and is_training):
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)

    def _run_epoch(self, *args, epoch, **kwargs):
        if self.state.global_step >= self.state.max_steps or self._has_stopped_early():
            self.control.should_training_stop = True  # the library would take one more step
            return
        self._epoch = epoch
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _init_training_state(self, max_steps, updates, epochs, checkpoint, trial):
        with _reading_state(checkpoint):
            result = super()._init_training_state(max_steps, updates, epochs, checkpoint, trial)
        if checkpoint and self.args.load_best_model_at_end:  # the library forgets the best one of a folder that moved
            best = runs.best_checkpoint(Path(self.args.output_dir), runs.read_state(Path(checkpoint)))
            self.state.best_model_checkpoint = best and str(best)
        # A resumed state holds the intervals of the checkpoint; those of this start count.
        self.state.compute_steps(self.args, max_steps)
        for callback in self.callback_handler.callbacks:
            stored = self.state.stateful_callbacks.get(type(callback).__name__)
            if isinstance(callback, transformers.EarlyStoppingCallback) and isinstance(stored, dict):
                for name, value in stored["attributes"].items():
                    setattr(callback, name, value)
        return result

    def _has_stopped_early(self) -> bool:
        """Whether the run ended at the checkpoint that it is resumed from."""
        return any(callback.early_stopping_patience_counter >= callback.early_stopping_patience
                   for callback in self.callback_handler.callbacks
                   if isinstance(callback, transformers.EarlyStoppingCallback))

    def _load_optimizer_and_scheduler(self, checkpoint):
        with _reading_state(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        schedule = self.lr_scheduler
        if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            # The optimizer's rates are those of the old schedule; where its length has changed, the last may be 0.
            steps = schedule.last_epoch
            rates = [rate * factor(steps) for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            schedule._last_lr = rates

    def _load_scaler(self, checkpoint):
        with _reading_state(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint):
        with _reading_state(checkpoint):
            super()._load_rng_state(checkpoint)

    def create_optimizer(self, model=None):
        """Optimizer over the trainable parameters, grouped by part and by weight decay."""
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = parts.optimizer_groups(
                model, self.model.config, self.rates, self.args.weight_decay,
                set(self.get_decay_parameter_names(model)),
            )
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **options)
        self._remember_settings()
        return self.optimizer

    def _remember_settings(self) -> None:
        """Keep what the flags set in each parameter group, which loading a checkpoint would replace."""
        self._settings = [
            {name: group[name] for name in ("weight_decay", "betas", "eps") if name in group}
            for group in self.optimizer.param_groups
        ]

    def _prepare_inputs(self, inputs):
        # DeepSpeed turns every floating input into its 16-bit type; metres and targets keep theirs.
        exact = {name: inputs[name].to(self.args.device) for name in ("coordinates", "targets") if name in inputs}
        return {**super()._prepare_inputs({k: v for k, v in inputs.items() if k not in exact}), **exact}

    def get_batch_samples(self, *args, **kwargs):
        start = time.perf_counter()
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._waited += time.perf_counter() - start
        for samples, tokens in map(self.count, batches):
            self._used, self._tokens = self._used + samples, self._tokens + tokens
        return batches, items

    def count(self, batch) -> tuple:
        """(samples, tokens) of a batch, see `collate.count`."""
        return collate.count(batch)

    def log(self, logs, *args, **kwargs):
        if "train_runtime" in logs and self._used:
            seconds, processes = logs["train_runtime"], self.args.world_size
            logs["train_samples_per_second"] = round(int(self._used) * processes / seconds, 3)
            if self._tokens:
                logs["train_tokens_per_second"] = round(int(self._tokens) * processes / seconds, 1)
            logs["data_wait_share"] = round(self._waited / seconds, 4)
        super().log(logs, *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples, device):
        if "regression" in extensions.settings(self.model):  # its loss counts targets, not words
            known = [batch["targets"].isfinite() for batch in batch_samples if "targets" in batch]
            known = known or [torch.zeros(1, 1, dtype=torch.bool)]
            batch_samples = [{"labels": None, "shift_labels": torch.where(row, 0, -100)} for row in known]
        return super()._get_num_items_in_batch(batch_samples, device)

    def _save(self, output_dir=None, state_dict=None):
        values = self.model.state_dict() if state_dict is None else state_dict
        added = {name for name in values if extensions.owns(parts.plain_name(name))}
        # A folder that plain transformers loads without a word about unknown weights.
        plain = {name: value for name, value in values.items() if name not in added} if added else state_dict
        super()._save(output_dir, state_dict=plain)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        extensions.write(self.model, folder)
        beside = added | (self._trained_beside_adapter() if _is_lora(self.model) else set())
        full = {parts.plain_name(name): values[name].detach().cpu().contiguous() for name in beside}
        remaining = adapters.complete(folder, self.model, full) if _is_lora(self.model) else full
        if remaining:
            with atomic_path(folder / TRAINED_PARTS) as temporary:
                save_file(remaining, temporary, metadata={"format": "pt"})
        if hasattr(self.model, "config"):  # a masked autoencoder's checkpoint is for its own run alone
            card.write(folder, self.model, self._parts_trained(full))

    def _parts_trained(self, beside_adapter: Iterable[str]) -> list[str]:
        """Parts that this folder's model has learned, in the order of parts.PARTS."""
        family = families.family_of(self.model.config)
        found = {part for part, rate in self.rates.items() if rate > 0 and part not in ("adapter", "additions")}
        found |= {parts.part_of(name, family, self.rates) for name in beside_adapter}
        return [part for part in parts.PARTS if part in found]

    def _trained_beside_adapter(self) -> set[str]:
        """Names of the parameters that are trained in full though the model has an adapter, frozen ones included."""
        family = families.family_of(self.model.config)
        owners = {name: parts.part_of(name, family, self.rates) for name, _ in self.model.named_parameters()}
        return {name for name, part in owners.items() if part != "adapter" and self.rates[part] > 0}

    def checkpoint_bytes(self) -> tuple[int, int]:
        """(bytes of the model in a checkpoint, bytes of all of it), about."""
        named = [(name, value) for name, value in self.model.named_parameters()
                 if value.requires_grad or not _is_lora(self.model)]
        weights = sum(parts.numel(value) * value.element_size() for _, value in named)
        trained = sum(parts.numel(value) * value.element_size() for _, value in named if value.requires_grad)
        if self.is_deepspeed_enabled:  # this process holds a part; fp32 weights and two moments
            optimizer = 12 * sum(parts.numel(value) for _, value in named if value.requires_grad)
        elif not self.state.global_step:  # two moments, as AdamW will have
            optimizer = 2 * trained
        else:
            optimizer = sum(value.nbytes for row in getattr(self.optimizer, "state", {}).values()
                            for value in row.values() if torch.is_tensor(value))
        return weights, weights + (0 if self.args.save_only_model else optimizer)

    def check_room(self, folder: Path, size: int) -> None:
        """Raise UserError where the file system of `folder` has no room for `size` bytes."""
        free = free_bytes(folder)
        if free is not None and free < size:
            raise UserError(f"{folder} needs about {size / 1e9:.3g} GB and its file system has {free / 1e9:.3g} GB "
                            "left: make room and run the same command again")

    def _save_checkpoint(self, model, trial):
        run = Path(self._get_output_dir(trial))
        folder = run / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            self.check_room(folder, self.checkpoint_bytes()[1])
            runs.unmark(folder)
        with named_errors(folder), _changed(self.args, save_total_limit=None):
            super()._save_checkpoint(model, trial)
            if dist.is_initialized():
                dist.barrier()
            if self.args.should_save:
                manifest.write(folder)
        if self.args.should_save:
            # Old checkpoints go only after the new one is known to be complete.
            runs.rotate(run, self.args.save_total_limit, self.state.best_model_checkpoint)
            if time.monotonic() - self._drawn > PLOT_SECONDS:
                draw_losses(self.state.log_history, run / "training_loss.png", self.loss_name)
                self._drawn = time.monotonic()

    def _finalize_training(self, *args, **kwargs):
        with _changed(self.args, save_total_limit=None):  # the newest checkpoint stays until the final model is there
            return super()._finalize_training(*args, **kwargs)

    def save_state(self):
        """Nothing: `save_final` writes the state with the model that it belongs to."""

    def save_final(self, write: Callable[[Path], None] | None = None) -> None:
        """The final model and the trainer's state into the run folder itself; a kill leaves the old ones or the new.

        Args:
            write: writes the files of the final model into an empty folder; None: `write_model`.
        """
        run = Path(self.args.output_dir)
        if self.args.should_save:
            self.check_room(run, self.checkpoint_bytes()[0])
            runs.start_final(run)
        with named_errors(run):
            (write or self.write_model)(run / runs.FINAL)
            if dist.is_initialized():
                dist.barrier()
            if self.args.should_save:
                self.state.save_to_json(str(run / runs.FINAL / runs.STATE))
                runs.finish_final(run)

    def write_model(self, folder: Path) -> None:
        """Model and processor, with the base model's tensors that transformers does not load."""
        self.save_model(str(folder))
        if self.args.should_save and not _is_lora(self.model):
            unloaded.carry_over(self.model, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        model = self.model if model is None else model
        if _is_lora(model):
            adapters.check_tensors(resume_from_checkpoint, model)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_trained_parts(model, resume_from_checkpoint)

    def _issue_warnings_after_load(self, load_result):
        """Refuse a checkpoint that lacks tensors of the model; the library says so in its log alone."""
        held = {value.data_ptr() for name, value in self.model.named_parameters()
                if name not in load_result.missing_keys}
        for name, value in self.model.named_parameters():
            if name in load_result.missing_keys and value.data_ptr() not in held and not extensions.owns(
                    parts.plain_name(name)):
                raise UserError(f"the checkpoint lacks {len(load_result.missing_keys)} tensors of the model, the first "
                                f"is {name}: remove it to go on from an earlier one")
        super()._issue_warnings_after_load(load_result)

    def _load_best_model(self):
        runs.check_model(Path(self.state.best_model_checkpoint))
        super()._load_best_model()
        if not self.is_deepspeed_enabled:
            load_trained_parts(self.model, self.state.best_model_checkpoint)


def count_steps(args: transformers.TrainingArguments, samples: int) -> int:
    """Optimisation steps of a run on `samples` training samples.

    Raises:
        UserError: with --dataloader_drop_last, a set that fills no batch of every process.
    """
    batch, processes = args.train_batch_size, args.world_size
    if args.dataloader_drop_last:
        batches = samples // batch // processes
        if not batches:
            raise UserError(f"--dataloader_drop_last leaves nothing of {samples} samples: one batch of {processes} "
                            f"processes takes {batch * processes}")
    else:
        batches = math.ceil(samples / batch / processes)
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))


def check_finite(result) -> None:
    """Raise where the mean loss of a training that has ended (transformers' TrainOutput) is not finite."""
    if not math.isfinite(result.training_loss):
        raise UserError(f"the loss became {result.training_loss}: lower the learning rate; nothing was saved")


def draw_losses(history: list[dict], file: Path, name: str = WORDS_LOSS) -> None:
    """Plot of training and validation loss over the steps of `history` (the trainer's log); `name` says which."""
    train = [(row["step"], float(row["loss"])) for row in history if "loss" in row]
    valid = [(row["step"], float(row["eval_loss"])) for row in history if "eval_loss" in row]
    if not train and not valid:
        return
    figure = plotting.figure(7, 4)
    axes = figure.add_subplot()
    for rows, label, style in ((train, "training", "-"), (valid, "validation", "o-")):
        if rows:
            axes.plot(*zip(*rows, strict=True), style, label=label, markersize=4, linewidth=1.5)
    positive = [loss for _, loss in train + valid if loss > 0]
    if positive and max(positive) / min(positive) > 20:
        axes.set_yscale("log")
    axes.set(xlabel="optimisation step", ylabel=name)
    axes.grid(alpha=0.3)
    axes.legend()
    plotting.save(figure, file, dpi=120)


def log_once(text: str) -> None:
    """Log on the first process only."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        logging.getLogger(__name__).info("%s", text)


def to_fp32(model: torch.nn.Module) -> None:
    """Trainable weights to fp32 in place: in bf16 a small step rounds away (upstream's defect 4)."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
