"""What the package asks of arguments: shapes and dtypes always, values where that is free.

A value is looked at in eager mode on the CPU only: on an accelerator the look
would synchronise the device, and under compilation it would break the graph.
All complaints are a ``ValueError`` that names the argument, shows what came,
and says what to do; one about NaN or an infinity is its subclass `NotFinite`.
"""

import math
import numbers
from typing import Any

import torch
from torch import Tensor


class NotFinite(ValueError):  # noqa: N818  (what it says is not an error everywhere)
    """A number is NaN or infinite: bad input at the start of a computation, a divergence during training."""


def as_float(name: str, value: Tensor) -> Tensor:
    """Return a float32 or float64 tensor, narrower types widened to float32; refuse anything else."""
    check_floating(name, value)
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def as_tensor(name: str, value: Any) -> Tensor:
    """Return a tensor, made from a NumPy array or a list of numbers where one is given."""
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} must be a tensor or an array of numbers, got {type(value).__name__}: {error}"
        ) from error


def check_floating(name: str, value: Any) -> None:
    """Refuse whole numbers, and what is no tensor, where a network or a density needs real numbers."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} must be a tensor, got {type(value).__name__}: convert it with torch.as_tensor({name})"
        )
    if not value.is_floating_point():
        raise ValueError(
            f"{name} must be floating point, got {value.dtype}: datasets.to_unit_interval(images) scales "
            "grey levels, .float() converts other numbers"
        )


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse a number of things that is not whole or too small."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_input(x: Tensor, weight: Tensor) -> None:
    """Refuse what a network with this weight would refuse in torch's words, or misread."""
    check_floating("x", x)
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        way = f"convert the data with .to({weight.dtype}), or the model with .to({x.dtype})"
        if weight.dtype in (torch.float16, torch.bfloat16):
            way = "keep weights in float32 and train under autocast, as fit(precision='bf16') does"
        raise ValueError(f"x has dtype {x.dtype} and the network {weight.dtype}: {way}")


def check_weight(name: str, value: Any) -> None:
    """Refuse a weight that is negative, infinite, NaN or no number."""
    try:
        is_weight = not isinstance(value, bool) and bool(0 <= value < math.inf)
    except TypeError:
        is_weight = False
    if not is_weight:
        raise ValueError(f"{name} is a weight and must be a number from 0 up, got {value!r}")


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


def positive(name: str, value: Any) -> float:
    """Return a number that is positive; refuse anything else."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return number


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
        kind = ValueError if scale.min() < 0 else NotFinite  # 0 and inf are overflows of log_scale
        raise kind(
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
            raise NotFinite(f"{name} must be finite, got {first:g}: look for overflow before this call")


def check_unit_interval(x: Tensor) -> None:
    """Refuse data outside [0, 1], NaN included."""
    if can_look(x) and not (x.min() >= 0 and x.max() <= 1):
        lowest, highest = x.min().item(), x.max().item()
        raise ValueError(
            f"x must lie in [0, 1], got values from {lowest:g} to {highest:g}: {_way_into_unit_interval(x)}"
        )


def _way_into_unit_interval(x: Tensor) -> str:
    """Advice that fits the values seen."""
    if x.isnan().any():
        return "remove or fill in what is missing"
    lowest, highest = x.min().item(), x.max().item()
    levels = next((top for top in (16, 255, 65535) if highest <= top), None)
    if lowest >= 0 and highest >= 2 and levels is not None:
        return f"divide grey levels by {levels}, as datasets.to_unit_interval does"
    if lowest >= -1 and highest <= 1:
        return "pixels in [-1, 1] become (x + 1) / 2"
    return "rescale them, or choose a Gaussian likelihood for data without such bounds"
