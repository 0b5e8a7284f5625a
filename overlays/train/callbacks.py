"""Callbacks of training: a finite loss, a tower that is frozen at first, checkpointing of the tower."""

import math

import transformers

from overlays import families
from overlays.errors import UserError
from overlays.model import parts


class FiniteLoss(transformers.TrainerCallback):
    """Stops a run whose loss is not finite any more, and says so."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Raise on the first loss that is not finite."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise UserError(f"the loss became {loss} at step {state.global_step}: lower the learning rate")


class FreezeEncoder(transformers.TrainerCallback):
    """Freezes the vision tower for the first epochs: no gradients, no movement.

    Its parameters are in the optimizer and in every checkpoint all the while, so that a resumed run finds them there.
    """

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        """Decide for the epoch that begins whether the tower takes gradients."""
        frozen = round(state.epoch or 0, 6) < self.epochs
        family = families.family_of(model.config)
        for name, parameter in model.named_parameters():
            if parts.part_of(name, family) == "vision":
                parameter.requires_grad_(not frozen)


class VisionCheckpointing(transformers.TrainerCallback):
    """Gradient checkpointing of the vision tower, apart from that of the language model.

    With a frozen tower there is nothing to checkpoint. The library lets its patches require gradients all the same, for
    which the tower would run forward twice and backward once, in vain: that is taken back.

    Args:
        enabled: None: as the language model's.
    """

    def __init__(self, enabled: bool | None):
        self.enabled = enabled

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Change what the library has set for all modules."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        visual, family = base.model.visual, families.family_of(base.config)
        if not any(value.requires_grad for name, value in base.named_parameters()
                   if parts.part_of(name, family) == "vision"):
            visual.patch_embed.register_forward_hook(_detached)  # after the hooks of enable_input_require_grads
            visual.gradient_checkpointing_disable()
        elif self.enabled is not None and self.enabled != args.gradient_checkpointing:
            if self.enabled:
                visual.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                visual.gradient_checkpointing_disable()


def _detached(module, inputs, output):
    return output.detach()
