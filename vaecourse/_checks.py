"""What the package asks of arguments: shapes and dtypes always, values where that is free.

A value is looked at in eager mode on the CPU only: on an accelerator the look
would synchronise the device, and under compilation it would break the graph.
All complaints are a ``ValueError`` that names the argument, shows what came,
and says what to do.
"""

import math

import torch
from torch import Tensor


def as_float(name: str, value: Tensor) -> Tensor:
    """Return a float32 or float64 tensor, narrower types widened to float32; refuse anything else."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {value.dtype}: convert it with .float()")
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def check_shapes(x: Tensor, name: str, params: Tensor) -> None:
    """Refuse parameters that are not shaped like the data, apart from leading sample dimensions."""
    if x.ndim == 0:
        raise ValueError("x must have shape (batch, *event), got a single number: add a batch dimension")
    if params.shape[-x.ndim :] != x.shape:
        raise ValueError(
            f"{name} must have the shape of x, after any sample dimensions: x has {tuple(x.shape)}, "
            f"{name} has {tuple(params.shape)} (broadcasting is refused, it hides transposed data)"
        )


def check_broadcasts(name: str, value: Tensor, loc: Tensor) -> None:
    """Refuse a value that cannot be broadcast to `loc`, or that would enlarge it."""
    if value.ndim > loc.ndim or any(
        s not in (1, n) for s, n in zip(reversed(value.shape), reversed(loc.shape), strict=False)
    ):
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} does not broadcast to loc, {tuple(loc.shape)}"
        )


def can_look(value: Tensor) -> bool:
    """Whether values may be inspected: eager mode, on the CPU, not empty."""
    return not torch.compiler.is_compiling() and value.device.type == "cpu" and value.numel() > 0


def check_scale(scale: float | Tensor, loc: Tensor) -> float | Tensor:
    """Return a scale that is positive, in the precision of `loc` too, and broadcasts without enlarging it."""
    smallest = torch.finfo(loc.dtype).tiny  # dividing by less could be dividing by 0
    if not isinstance(scale, Tensor):
        if not smallest <= scale < math.inf:  # comparisons, which torch.compile can trace
            raise ValueError(
                f"scale is a standard deviation and must be positive (in {loc.dtype}), got {scale}"
            )
        return float(scale)
    scale = as_float("scale", scale)
    check_broadcasts("scale", scale, loc)
    if can_look(scale) and not (scale.min() >= smallest and scale.max() < math.inf):
        raise ValueError(
            f"scale is a standard deviation and must be positive and finite, got {scale.min():g} to "
            f"{scale.max():g} (networks should emit log_scale)"
        )
    return scale


def check_finite(**tensors: Tensor) -> None:
    """Refuse NaN and infinities, naming the argument that holds one."""
    for name, value in tensors.items():
        # A sum is far faster to look at, and is finite only if every term is.
        if can_look(value) and not value.sum().isfinite() and not torch.isfinite(value).all():
            first = value[~torch.isfinite(value)][0]
            raise ValueError(f"{name} must be finite, got {first:g}: look for overflow before this call")


def check_unit_interval(x: Tensor) -> None:
    """Refuse data outside [0, 1], NaN included."""
    if can_look(x) and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(
            f"x must lie in [0, 1], got values from {x.min():g} to {x.max():g}: divide grey levels by 255 "
            "(datasets.to_unit_interval), and choose a Gaussian for data without such bounds"
        )
