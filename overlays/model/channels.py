"""N-channel vision: the patch embedding of any Qwen-VL family for N channels, started from the RGB one.

The definition of "the same input" for `project`: with normalised channels z = (x - mean) / std of the raster and a
3 x N matrix P, the RGB model is shown the image whose normalised pixels are P z, in pixel values
y = 255 (m + s P z) with the RGB processor's own m and s. The mean raster thus falls on the RGB model's mean colour, no
constant is left over, and the definition holds for the families whose patch embedding has no bias (Qwen2-VL, 2.5-VL).
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn

from overlays.errors import UserError
from overlays.model.forward import PatchProjection

INITS = ("normal", "zero", "copy", "project")


def channels_of(config) -> int:
    """Input channels of a model, from its config."""
    return config.vision_config.in_channels


def adapt_input_conv(proj: nn.Conv3d, init: str, channels: int,
                     projection: torch.Tensor | None = None) -> PatchProjection:
    """An N-channel patch embedding made from `proj`, computed as a matrix product.

    Args:
        proj: patch embedding with weight (embed_dim, C, T, P, P); C is 3 for `project`.
        init: "normal" (the standard deviation of `proj`, scaled by sqrt(C / N)), "zero", "copy" (the kernels repeated
            over the channels and scaled by C / N, as timm does) or "project" (kernel composed with `projection`).
        channels: N.
        projection: (3, N) matrix from normalised channels to normalised RGB, e.g. a PCA or a band composite.

    Returns:
        Embedding with weight (embed_dim, N, T, P, P) and the bias of `proj`, in its type and on its device. With
        "project", new(z) equals proj(P z) up to rounding for every z.

    Raises:
        UserError: an unknown init, a projection that is not 3 x N, or one without need.
    """
    with _whole(proj):
        weight = proj.weight.detach()
        values = _initial(weight.float(), init, channels, projection).to(weight.dtype)
        made = nn.utils.skip_init(
            PatchProjection, channels, proj.out_channels, proj.kernel_size, proj.stride, bias=proj.bias is not None,
            device=weight.device, dtype=weight.dtype,
        )
        with torch.no_grad():
            made.weight.copy_(values)
            if proj.bias is not None:
                made.bias.copy_(proj.bias)
    made.weight.requires_grad_(proj.weight.requires_grad)
    return made


def _initial(weight: torch.Tensor, init: str, channels: int, projection: torch.Tensor | None) -> torch.Tensor:
    """(embed_dim, channels, T, P, P) values from (embed_dim, C, T, P, P)."""
    if init not in INITS:
        raise UserError(f"--channel_init is one of {', '.join(INITS)}, not {init!r}")
    if (projection is None) != (init != "project"):
        raise UserError("--channel_init project and --channel_projection FILE.npy belong together")
    shape, own = (len(weight), channels, *weight.shape[2:]), weight.shape[1]
    if init == "zero":
        return weight.new_zeros(shape)
    if init == "normal":
        return torch.randn(shape).to(weight) * weight.std() * (own / channels) ** 0.5
    if init == "copy":
        return weight[:, torch.arange(channels) % own] * (own / channels)
    matrix = torch.as_tensor(projection)
    if matrix.shape != (own, channels):
        raise UserError(f"the channel projection has the shape {tuple(matrix.shape)}, but {own} x {channels} "
                        "(RGB from the raster's channels) is needed")
    if not torch.isfinite(matrix).all():
        raise UserError("the channel projection holds values that are not finite")
    return torch.einsum("ecthw,cn->enthw", weight, matrix.to(weight))


def _whole(proj: nn.Conv3d):
    """The context in which the weights are whole: ZeRO-3 leaves every rank a part of them."""
    if not hasattr(proj.weight, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(proj.parameters()))


def adapt_input_channels(model: nn.Module, channels: int, init: str = "copy",
                         projection: torch.Tensor | None = None) -> nn.Module:
    """Let a generation model (see overlays.families) take `channels` input channels; returns it.

    Its config says so too, under the key that plain transformers reads, so a full checkpoint of it loads there.
    A model that takes that many already stays as it is.

    Raises:
        UserError: the model was given another number before, or as `adapt_input_conv`.
    """
    own = channels_of(model.config)
    if channels == own:
        return model
    _check_count(own, channels)
    embed = model.model.visual.patch_embed
    embed.proj = adapt_input_conv(embed.proj, init, channels, projection)
    embed.in_channels = channels
    for config in {id(c): c for c in (model.config.vision_config, model.model.visual.config)}.values():
        set_channels(config, channels)
    return model


def set_channels(vision_config, channels: int) -> None:
    """Write the number of channels into a vision config (`in_chans` is an older name that released models carry)."""
    vision_config.in_channels = channels
    if hasattr(vision_config, "in_chans"):
        vision_config.in_chans = channels


def wanted(config, model_args) -> dict[str, dict]:
    """What the flags change about the input channels of a model; nothing is written anywhere.

    Args:
        config: of the base model.
        model_args: object with in_channels, channel_init, channel_projection.

    Returns:
        {"channels": settings for `attach`}; empty where the model takes the channels asked for already.

    Raises:
        UserError: the projection cannot be read or does not fit, or the model was given another number before.
    """
    matrix = read_projection(model_args.channel_projection) if model_args.channel_projection else None
    own = channels_of(config)
    count = model_args.in_channels or (own if matrix is None else matrix.shape[1])
    if count == own:
        return {}
    _check_count(own, count)
    # A wrong init or matrix is refused here, before the weights are loaded.
    _initial(torch.zeros(1, own, 1, 1, 1), model_args.channel_init, count, matrix)
    settings = {"in_channels": count, "init": model_args.channel_init}
    return {"channels": settings if matrix is None else settings | {"projection": matrix.tolist()}}


def patch_embed_rate(before: int, after: int, vision_rate: float, training) -> float:
    """Learning rate of a patch embedding whose channels change, which is a part of its own and always trained.

    Adam moves every weight by about the rate, so what comes out moves by the rate times the inputs: the rate is the
    vision tower's times 3 / N, which moves the features as those of an RGB embedding.

    Args:
        before, after: numbers of channels.
        vision_rate: the vision tower's learning rate, 0 where it is frozen.
        training: object with learning_rate, vision_tower_lr, patch_embed_lr.
    """
    if training.patch_embed_lr is not None:
        return training.patch_embed_lr
    return (vision_rate or training.vision_tower_lr or training.learning_rate) * before / after


def identity(settings: dict[str, dict]) -> dict[str, dict]:
    """What a resumed run must have in common with the one it continues, of what `wanted` returns."""
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    return {name: {"init": row["init"], "settings": digest} for name, row in settings.items()}


def read_projection(file: str | Path) -> torch.Tensor:
    """The matrix (3, N) float32 of a .npy file. Raises UserError where it holds none."""
    try:
        matrix = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"channel projection {file} cannot be read: {error}") from None
    if getattr(matrix, "ndim", 0) != 2 or matrix.dtype.kind not in "uif":
        raise UserError(f"channel projection {file} must be a .npy file of a 3 x N matrix of numbers")
    return torch.from_numpy(matrix.astype(np.float32))


def _check_count(own: int, count: int) -> None:
    if count < 1:
        raise UserError(f"--in_channels must be at least 1, not {count}")
    if own != 3:
        raise UserError(f"the model takes {own} channels and cannot be given {count}: start from its RGB base")


def attach(model: nn.Module, in_channels: int, init: str = "zero", projection: list[list[float]] | None = None) -> None:
    """`adapt_input_channels` as an extension (see model/extensions.py): settings as they lie in additions.json.

    The trained weights of the embedding come from the checkpoint afterwards.
    """
    adapt_input_channels(model, in_channels, init, None if projection is None else torch.tensor(projection))
