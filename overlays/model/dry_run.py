"""Peak memory of a training step, found by running the step on the meta device: real code, no weights, no arithmetic.

Every operation of forward and backward runs on tensors that have a shape and no memory, and the bytes of those that
live are counted. Frozen layers, adapters, checkpointing, DeepStack and every family are thus counted as they run.
Integers (ids, masks, grids) are real, since shapes depend on them.
"""

import itertools
import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from overlays.model import loss

META = torch.device("meta")
INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


@dataclass(frozen=True)
class Shape:
    """A batch: `samples` of `tokens` each, of which `visual` show an image or video and `supervised` have a label.

    `images` divide the visual tokens of a sample. Packed samples stand in one row; others are padded to one length,
    and attention reads a mask of the padding where it is `masked` (SDPA).
    """

    samples: int
    tokens: int
    visual: int
    images: int
    supervised: int
    packed: bool = False
    masked: bool = True


def make_batch(config, shape: Shape, device: torch.device | str = META) -> dict[str, torch.Tensor]:
    """What a collator gives for `shape`; pixels on `device`, all else on the CPU.

    Several rows get a mask as a batch with padding has; on the meta device the mask of attention itself (B, 1, L, L).
    """
    vision, samples, tokens = config.vision_config, shape.samples, shape.tokens
    merge = vision.spatial_merge_size
    ids = torch.zeros(samples, tokens, dtype=torch.long)
    ids[:, :shape.visual] = config.image_token_id
    labels = torch.full_like(ids, -100)
    labels[:, tokens - shape.supervised:] = 0
    counts = [len(part) for part in torch.arange(shape.visual).tensor_split(max(1, shape.images)) if len(part)]
    grids = torch.tensor([[1, merge, merge * count] for count in counts] * samples or [[1, merge, merge]])
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size ** 2
    batch = {
        "input_ids": ids, "labels": labels, "mm_token_type_ids": (ids == config.image_token_id).int(),
        "image_grid_thw": grids, "pixel_values": torch.zeros(int(grids.prod(1).sum()), pixels, device=device),
    }
    places = torch.arange(tokens).expand(samples, tokens)
    if shape.packed:
        batch = {key: value if key in ("image_grid_thw", "pixel_values") else value.reshape(1, -1)
                 for key, value in batch.items()}
        return batch | {"position_ids": places.reshape(1, 1, -1).expand(4, 1, -1)}
    batch["position_ids"] = places.expand(3, samples, tokens)
    if samples == 1 or not shape.masked:
        return batch
    if torch.device(device) == META:
        batch["attention_mask"] = torch.empty(samples, 1, tokens, tokens, dtype=torch.bool, device=META)
    else:
        batch["attention_mask"] = torch.ones(samples, tokens, dtype=torch.long)
        batch["attention_mask"][1:, 0] = 0
    return batch


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is active, by kind.

    Attributes:
        kind: of the tensors made from now on.
        live: bytes by kind at this moment; peak: those of the moment with the largest sum.
    """

    def __init__(self, weights: Iterable[torch.Tensor], keep_gradients: bool = True):
        super().__init__()
        self.keep_gradients = keep_gradients
        self.kind = "activations"
        self.live, self.peak = Counter(), Counter()
        self._kinds = {value.untyped_storage()._cdata: None for value in weights}  # storage -> kind; None: not counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        args, kwargs = _placed(func, args, kwargs or {})
        result = func(*args, **kwargs)
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._kinds:
            return
        self._kinds[key] = self.kind
        self.live[self.kind] += storage.nbytes()
        weakref.finalize(storage, self._free, key, storage.nbytes())
        if self.live.total() > self.peak.total():
            self.peak = self.live.copy()

    def _free(self, key: int, size: int) -> None:
        self.live[self._kinds.pop(key)] -= size

    def is_gradient(self, parameter: torch.Tensor) -> None:
        """Count the gradient that a parameter has now as one, or drop it."""
        if not self.keep_gradients:
            parameter.grad = None
            return
        storage = parameter.grad.untyped_storage()
        before = self._kinds.get(storage._cdata)
        if before is not None:
            self._kinds[storage._cdata] = "gradients"
            self.live[before] -= storage.nbytes()
            self.live["gradients"] += storage.nbytes()


def _placed(func, args, kwargs) -> tuple:
    """Arguments on one device: meta where any tensor is on it; a factory of integers makes real ones."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    if any(value.device == META for value in tensors):
        if func in INDEXED:  # a mask becomes the numbers of its places while it is real
            places = [part for index in args[1] for part in
                      (index.nonzero(as_tuple=True) if index is not None and index.dtype == torch.bool else (index,))]
            args = (args[0], places, *args[2:])
        return tree_map(lambda value: value.to(META) if isinstance(value, torch.Tensor) else value, (args, kwargs))
    if kwargs.get("device") is not None and torch.device(kwargs["device"]) == META:
        dtype = kwargs.get("dtype") or (tensors[0].dtype if tensors else None)
        counts = dtype is None and func.overloadpacket is torch.ops.aten.arange and all(type(n) is int for n in args)
        if counts or dtype is not None and not dtype.is_floating_point:
            kwargs = kwargs | {"device": torch.device("cpu")}
    return args, kwargs


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """SDPA by a kernel that keeps no L x L scores, as on a real device; a mask becomes one of numbers, as there."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


class _Autocast:
    """bf16 autocast as on a GPU, which torch does not have on the meta device; copies of weights live in a forward."""

    def __init__(self):
        self.copies: dict[int, torch.Tensor] | None = {}

    def to(self, dtype: torch.dtype, value):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if self.copies is None or not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self.copies:
            self.copies[id(value)] = value.to(dtype)
        return self.copies[id(value)]

    def wrap(self, function, dtype: torch.dtype):
        def call(*args, **kwargs):
            args, kwargs = tree_map(lambda value: self.to(dtype, value), (args, kwargs))
            return function(*args, **kwargs)

        return call


@contextmanager
def _kernels(autocast: _Autocast | None):
    """Kernels that the meta device lacks, in the place of torch's."""
    changed = {"scaled_dot_product_attention": _attention}
    if autocast is not None:
        changed = {name: autocast.wrap(changed.get(name, getattr(F, name)), torch.bfloat16)
                   for name in ("scaled_dot_product_attention", "linear", "conv1d", "conv2d", "conv3d")}
        changed["layer_norm"] = autocast.wrap(F.layer_norm, torch.float32)
    with ExitStack() as stack:
        for name, function in changed.items():
            stack.enter_context(mock.patch.object(F, name, function))
        yield


def peak(model: nn.Module, shape: Shape, bf16: bool = False, accumulated: bool = False, keep_gradients: bool = True,
         head: str = "none") -> dict[str, int]:
    """Bytes of gradients, activations and logits at the peak of one forward and backward pass, weights left out.

    Args:
        model: a generation model on the meta device with the overlay's forward, an adapter around it or not, in
            training mode, whose trained parameters require gradients.
        bf16: whether the step runs under bf16 autocast.
        accumulated: whether gradients of an earlier batch are there already.
        keep_gradients: whether they stay until the step; else they are given away as soon as they are there (ZeRO).
        head: what is learned: "none" words, "vision" or "text" a regression head, whose weights are not counted.
    """
    trained = [value for value in model.parameters() if value.requires_grad]
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    memory = Memory(itertools.chain(model.parameters(), model.buffers()), keep_gradients)
    hooks = [value.register_post_accumulate_grad_hook(memory.is_gradient) for value in trained]
    autocast = _Autocast() if bf16 else None
    try:
        with memory, _kernels(autocast):
            for value in trained if accumulated and keep_gradients else ():
                value.grad = torch.empty_like(value)
                memory.is_gradient(value)
            _run(base, make_batch(base.config, shape), memory, autocast, head)
    finally:
        for hook in hooks:
            hook.remove()
        for value in trained:
            value.grad = None
    return dict(memory.peak)


def _run(model: nn.Module, batch: dict, memory: Memory, autocast: _Autocast | None, head: str) -> None:
    """Forward and backward as in `forward.SupervisedLoss`."""
    labels = batch.pop("labels")[:, 1:]
    supervised = labels != -100
    if head == "vision":
        features = model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True)
        hidden = torch.cat(features.pooler_output)
    else:
        hidden = model.model(**batch, use_cache=False)[0][:, :-1][supervised]
    batch.clear()
    if head == "none":
        dtype = hidden.dtype if autocast is None else torch.bfloat16
        memory.kind = "logits"
        total = loss.summed_cross_entropy(hidden.to(dtype), model.lm_head.weight.to(dtype), labels[supervised],
                                          torch.tensor(1.0))
        memory.kind = "activations"
    else:
        total = hidden.float().mean()
    del hidden
    if autocast is not None:
        autocast.copies = None
    if total.requires_grad:  # a regression head alone, which is not counted, needs no backward pass
        torch.autograd.backward([total])
