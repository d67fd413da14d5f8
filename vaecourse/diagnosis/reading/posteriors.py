"""Meanings of the fourth argument, and the gradients that a KL divergence has under each."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vaecourse.diagnosis.probing import Experiment, Probe
from vaecourse.diagnosis.reading.fits import fit

# Scale of the posterior, from each meaning of the fourth argument: if it is any number, or a positive one.
SIGNED: dict[str, Callable[[Tensor], Tensor]] = {
    "logvar": lambda v: (0.5 * v).exp(),
    "log_scale": torch.exp,
    "log_precision": lambda v: (-0.5 * v).exp(),
    "softplus_scale": F.softplus,
    "softplus_variance": lambda v: F.softplus(v).sqrt(),
    "sigmoid_scale": torch.sigmoid,
    "negative_abs_logvar": lambda v: (-0.5 * v.abs()).exp(),
}
POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {"scale": lambda v: v, "variance": torch.sqrt}
EXACT = ("logvar", "log_scale", "log_precision", "scale", "variance")  # the others may add a small constant
POSTERIORS = ("logvar", "log_scale", "scale", "variance", "fixed")  # those that a caller may state


@dataclass(frozen=True)
class Divergence:
    """What the KL term is: ``factor * KL``, or its fault and the numbers that show it."""

    posterior: str | None = None
    factor: float | None = None
    fault: str | None = None
    kind: str = "read"
    ratio: float | None = None  # of the factor with a batch of twice the size
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Slopes:
    """Posterior mean, fourth argument and the gradients by them, of some probes."""

    mu: Tensor
    v: Tensor
    by_mu: Tensor
    by_v: Tensor

    @classmethod
    def of(cls, probes: Iterable[Probe]) -> "Slopes":
        """Take them all together."""
        rows = [(p.mu, p.logvar, p.by_mu, p.by_logvar) for p in probes]
        return cls(*(torch.cat(parts) for parts in zip(*rows, strict=True)))

    def fit(self, scale: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Factor of the KL divergence from N(0, I), and the larger misfit of its two gradients.

        The factor is that of the mean.  The gradient by the fourth argument is a difference, and is
        judged by the size of its parts: a small constant beside the variance does not matter near
        the prior either.
        """
        by_variance, by_log = slopes_of(scale, self.v)
        target = 0.5 * (by_variance - by_log)
        factor, misfit = self.fit_mean()
        size = torch.maximum(self.by_v.norm(), abs(factor) * 0.5 * by_log.norm())
        other = float((self.by_v - factor * target).norm() / size) / 10
        return factor, math.nan if math.isnan(misfit + other) else max(misfit, other)

    def fit_mean(self) -> tuple[float, float]:
        """Factor of half the squared mean, and its misfit."""
        return fit([(self.by_mu, self.mu)])


def slopes_of(scale: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives of the variance and of its logarithm with respect to the fourth argument."""
    leaf = v.detach().clone().requires_grad_()
    value = scale(leaf).square()
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    return slope, slope / value.detach()


def scales_of(view: Experiment) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the exact meanings that the sign of the fourth argument allows."""
    table = POSITIVE if view.prober.domain.is_positive else SIGNED
    return {name: scale for name, scale in table.items() if name in EXACT}
