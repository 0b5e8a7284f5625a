"""Cross-entropy of a linear head, without the logits and their gradients of all positions at once.

The gradients are computed with the loss, from a block of logits at a time: softmax and gradient are written into the
block itself, so that one block is all the memory that the vocabulary takes.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from overlays.model.subclass import Extension, extend

BLOCK_VALUES = 1 << 26  # logits of a block; 256 MiB in fp32


class LossHead(Extension):
    """The output layer of a language model, which returns the loss where `targets` are given."""

    added_parameters = {"forward": ("targets", "count")}

    def forward(self, input, targets=None, count=None):
        """Logits, or with `targets` (N,) for `input` (N, hidden) the summed cross-entropy divided by `count`."""
        if targets is None:
            return super().forward(input)
        return linear_cross_entropy(input, self.weight, targets, count)


def linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                         count: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Summed cross-entropy of `hidden @ weight.T` at `targets`, divided by `count`; in fp32.

    Args:
        hidden: (N, hidden); N may be 0.
        weight: (vocabulary, hidden).
        targets: (N,) int64.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    count = torch.as_tensor(count, dtype=torch.float32, device=hidden.device)
    with torch.autocast(device, enabled=False):
        return summed_cross_entropy(hidden.to(dtype), weight.to(dtype), targets, count)


def summed_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                         count: torch.Tensor) -> torch.Tensor:
    """`linear_cross_entropy` for `hidden` and `weight` of one type, which is that of the logits."""
    return _LinearCrossEntropy.apply(hidden, weight, targets, count)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, count):
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        of_hidden = torch.zeros_like(hidden) if wants_hidden else None
        of_weight = None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = max(1, BLOCK_VALUES // len(weight))
        summed = torch.float32 if len(hidden) > rows else weight.dtype  # of several blocks
        for start in range(0, len(hidden), rows):
            block, wanted = hidden[start:start + rows], targets[start:start + rows, None]
            logits = (block @ weight.T).float()
            # In place on the CPU, where the kernel works row by row; elsewhere a second block is cheaper than a doubt.
            logits = torch.log_softmax(logits, dim=-1, out=logits if logits.device.type == "cpu" else None)
            total -= logits.gather(1, wanted).sum()
            if not (wants_hidden or wants_weight):
                continue
            logits.exp_().scatter_add_(1, wanted, logits.new_full((1, 1), -1.0).expand_as(wanted))
            slope = logits.div_(count).to(hidden.dtype)
            if wants_hidden:
                torch.mm(slope, weight, out=of_hidden[start:start + rows])
            if wants_weight:
                part = slope.T @ block
                of_weight = part.to(summed) if of_weight is None else of_weight.add_(part)
        if wants_weight:
            of_weight = torch.zeros_like(weight) if of_weight is None else of_weight.to(weight.dtype)
        ctx.gradients = of_hidden, of_weight
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        of_hidden, of_weight = ctx.gradients
        ctx.gradients = None
        if slope.device.type != "cpu" or slope != 1:  # to look at the value would wait for a GPU
            of_hidden, of_weight = (value if value is None else value.mul_(slope.to(value.dtype))
                                    for value in (of_hidden, of_weight))
        return of_hidden, of_weight, None, None


def install(head: nn.Module) -> None:
    """Let a plain linear output layer without bias compute the loss; another one stays as it is."""
    if type(head) is nn.Linear and head.bias is None:
        extend(head, LossHead)
