"""3-D features: what the coordinates of a visual token add to it, between the merger and the text.

A method is one class: a module made from the model's hidden size and the two settings, whose forward turns
coordinates (n, 3), metres, into what is added to the tokens (n, hidden). Starting at exactly 0 keeps the first step
that of the base model. `@register("name")` makes it `--feature_processing_method name`.
"""

import difflib

import torch
import torch.nn.functional as F
from torch import nn

from overlays.errors import UserError
from overlays.model.subclass import Extension, extend

TEMPERATURE = 10000.0  # of the sines: Vaswani et al. 2017
PROCESSORS: dict[str, type[nn.Module] | None] = {"base": None}


def register(name: str):
    """Class decorator: the class is the method `name`."""
    def add(processor: type[nn.Module]) -> type[nn.Module]:
        PROCESSORS[name] = processor
        return processor

    return add


def position_encoding(voxels: torch.Tensor, dim: int) -> torch.Tensor:
    """Sines and cosines of three axes side by side (Vaswani et al. 2017, for each axis).

    Args:
        voxels: (n, 3) coordinates in voxels. Small ones cost examples where lengths are compared (docs/scenes.md).
        dim: each axis gets the largest even number of channels up to dim / 3; the rest is 0.

    Returns:
        (n, dim) in the type of `voxels`.
    """
    width = dim // 6 * 2
    steps = torch.arange(0, width, 2, device=voxels.device, dtype=voxels.dtype)
    angles = voxels[..., None] * TEMPERATURE ** (-steps / max(width, 1))  # (n, 3, width / 2)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)  # (n, 3 width)
    return F.pad(waves, (0, dim - 3 * width))


@register("sin3d_pe")
class SinusoidalEncoding(nn.Module):
    """The position encoding times one learned scale a channel, which starts at 0."""

    def __init__(self, hidden_size: int, position_encoding_dim: int, voxel_size_m: float):
        super().__init__()
        self.hidden_size, self.dim, self.voxel_size_m = hidden_size, position_encoding_dim, voxel_size_m
        self.scale = nn.Parameter(torch.zeros(position_encoding_dim))

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        """(n, 3) metres -> (n, hidden)."""
        waves = position_encoding(coordinates / self.voxel_size_m, self.dim) * self.scale
        return F.pad(waves, (0, self.hidden_size - self.dim))


@register("mlp_pe")
class LearnedEncoding(nn.Module):
    """The position encoding and metres through an MLP of one hidden layer, whose last layer starts at 0.

    Without `metres` the MLP gets the position encoding alone, as checkpoints before version 0.2 have learned it.
    """

    metres = False

    def __init__(self, hidden_size: int, position_encoding_dim: int, voxel_size_m: float):
        super().__init__()
        self.dim, self.voxel_size_m = position_encoding_dim, voxel_size_m
        self.up = nn.Linear(position_encoding_dim, hidden_size)
        self.down = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        """(n, 3) metres -> (n, hidden)."""
        waves = position_encoding(coordinates / self.voxel_size_m, self.dim - 3 * self.metres)
        waves = torch.cat([waves, coordinates], dim=-1) if self.metres else waves
        return self.down(F.gelu(self.up(waves.to(self.up.weight.dtype))))


def settings(method: str, position_encoding_dim: int = 0, voxel_size_m: float = 2.0,
             max_depth_m: float = 10.0) -> dict | None:
    """Settings of the extension "spatial" for these flags; None where the method adds nothing (base).

    Raises:
        UserError: the method is not known, or a number makes no sense.
    """
    if method not in PROCESSORS:
        near = difflib.get_close_matches(method, PROCESSORS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PROCESSORS)}"
        raise UserError(f"--feature_processing_method {method!r} is unknown; {hint}")
    if position_encoding_dim < 0 or 0 < position_encoding_dim < 6:
        raise UserError(f"--position_encoding_dim must be at least 6, or 0 for the hidden size, "
                        f"not {position_encoding_dim}")
    for name, value in (("voxel_size_m", voxel_size_m), ("max_depth_m", max_depth_m)):
        if not 0 < value < float("inf"):
            raise UserError(f"--{name} must be above 0, not {value}")
    if PROCESSORS[method] is None:
        return None
    return {"method": method, "position_encoding_dim": position_encoding_dim, "voxel_size_m": voxel_size_m,
            "max_depth_m": max_depth_m, **({"metres": True} if method == "mlp_pe" else {})}


def as_stored(wanted: dict, stored: dict | None) -> dict:
    """Settings for training that goes on from a model with `stored` ones: mlp_pe from before 0.2 gets no metres."""
    old = stored is not None and stored.get("method") == wanted["method"] and "metres" not in stored
    return {key: value for key, value in wanted.items() if not (old and key == "metres")}


def attach(model: nn.Module, method: str, position_encoding_dim: int, voxel_size_m: float, max_depth_m: float,
           metres: bool = False) -> None:
    """Put a method at `model.model.spatial` and let the vision features take `coordinates`.

    `get_image_features` and `get_video_features` get an argument `coordinates` (tokens, 3): of all images and then of
    all videos of the batch; the images' call reads its beginning, the videos' its end. `generate` finds it there.
    DeepStack levels stay as they are. Weights start the same whatever was drawn before.

    Args:
        model: a generation model of overlays.families.
        position_encoding_dim: channels of the position encoding; 0 takes the hidden size.
        max_depth_m: not the model's affair; it is kept with the checkpoint for those who make the coordinates.
        metres: whether mlp_pe gets the coordinates in metres as well.
    """
    hidden = model.config.get_text_config().hidden_size
    if settings(method, position_encoding_dim, voxel_size_m, max_depth_m) is None:
        return
    if method == "sin3d_pe" and position_encoding_dim > hidden:
        raise UserError(f"--position_encoding_dim {position_encoding_dim} is above the model's hidden size {hidden}")
    core = model.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        core.spatial = PROCESSORS[method](hidden, position_encoding_dim or hidden, voxel_size_m)
    if metres:
        core.spatial.metres = True
    core.spatial.train(core.training)
    extend(core, WithCoordinates)


class WithCoordinates(Extension):
    """The family's model, whose vision features take `coordinates` (tokens, 3) of its visual tokens."""

    added_parameters = {"get_image_features": ("coordinates",), "get_video_features": ("coordinates",)}

    def get_image_features(self, coordinates: torch.Tensor | None = None, **kwargs):
        """Features of images, which come first in `coordinates`."""
        return self._located(super().get_image_features(**kwargs), coordinates, at_end=False)

    def get_video_features(self, coordinates: torch.Tensor | None = None, **kwargs):
        """Features of videos, which come last in `coordinates`."""
        return self._located(super().get_video_features(**kwargs), coordinates, at_end=True)

    def _located(self, output, coordinates: torch.Tensor | None, at_end: bool):
        counts = [len(part) for part in output.pooler_output]
        tokens = torch.cat(list(output.pooler_output))
        if coordinates is None:  # every rank of a sharded run takes part in every call, also in one without a scene
            coordinates = tokens.new_zeros(len(tokens), 3, dtype=torch.float32)
        if len(coordinates) < len(tokens):
            raise ValueError(f"{len(coordinates)} coordinates for {len(tokens)} visual tokens")
        coordinates = coordinates[len(coordinates) - len(tokens):] if at_end else coordinates[:len(tokens)]
        output.pooler_output = torch.split(add(self.spatial, tokens, coordinates.to(tokens.device)), counts)
        return output


def add(processor: nn.Module, tokens: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """(n, hidden) tokens and what their coordinates (n, 3) add; a token at exactly 0 has no depth and stays."""
    seen = (coordinates != 0).any(dim=-1, keepdim=True)
    added = processor(coordinates.float())
    return tokens + torch.where(seen, added, torch.zeros_like(added)).to(tokens.dtype)
