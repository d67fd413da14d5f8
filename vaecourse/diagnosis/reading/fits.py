"""Least squares between a measured gradient and those of the readings."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vaecourse.diagnosis.probing import Probe

Nll = Callable[[Tensor, Tensor], Tensor]  # of recon_x and x, for each number or already summed

TOLERANCE = 1e-4  # largest relative misfit of a gradient; constants such as log(p + 1e-8) stay below it


@dataclass(frozen=True)
class Reconstruction:
    """What the reconstruction term is: ``factor * nll`` up to a constant, or the kind of its misfit."""

    family: str = "unknown"
    parameterization: str | None = None
    nll: Nll | None = None
    factor: float | None = None
    kind: str = "read"
    values: Mapping[str, Any] = field(default_factory=dict)
    ratio: float | None = None  # of the factor with a batch of twice the size

    @property
    def is_known(self) -> bool:
        """Whether it is a likelihood that has been read."""
        return self.family != "unknown"


def fit(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Best factor of the second of each pair for the first, and the relative misfit that remains."""
    products = torch.zeros(3, dtype=torch.float64)
    for gradient, target in pairs:
        products += torch.stack([(gradient * target).sum(), target.square().sum(), gradient.square().sum()])
    both, target_square, square = products.tolist()
    if not (target_square > 0 and square > 0):
        return math.nan, math.nan
    factor = both / target_square
    return factor, math.sqrt(max(0.0, 1 - factor * both / square))


def fits(misfit: float) -> bool:
    """Whether a misfit is small; it is not where it is NaN."""
    return misfit <= TOLERANCE


def gradient_of(nll: Nll, r: Tensor, x: Tensor) -> Tensor:
    """Gradient with respect to recon_x."""
    leaf = r.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nll(leaf, x).sum(), leaf)
    return gradient


def fit_nll(probes: Iterable[Probe], nll: Nll) -> tuple[float, float]:
    """Factor of a likelihood in the reconstruction term, and the misfit."""
    return fit((p.by_recon, gradient_of(nll, p.recon_x, p.x)) for p in probes)


def solve(target: Tensor, basis: list[Tensor]) -> tuple[list[float], float]:
    """Coefficients of the linear combination next to a target, and the relative misfit."""
    matrix = torch.stack([b.flatten() for b in basis], 1)
    size = matrix.norm(dim=0).clamp(min=1e-300)
    solution = torch.linalg.lstsq(matrix / size, target.flatten()[:, None]).solution[:, 0]
    misfit = (matrix / size @ solution - target.flatten()).norm() / target.norm()
    return (solution / size).tolist(), float(misfit)


@dataclass(frozen=True)
class Numbers:
    """Prediction, data and gradient, number by number, of some columns."""

    r: Tensor
    x: Tensor
    g: Tensor

    @classmethod
    def of(cls, probes: Iterable[Probe], columns: Tensor | slice) -> "Numbers":
        """Take some columns of some probes."""
        rows = [(p.recon_x[:, columns], p.x[:, columns], p.by_recon[:, columns]) for p in probes]
        return cls(*(torch.cat(parts) for parts in zip(*rows, strict=True)))

    def fit(self, nll: Nll) -> tuple[float, float]:
        """Factor of a likelihood in these numbers, and the misfit."""
        return fit([(self.g, gradient_of(nll, self.r, self.x))])

    def rows(self, start: int, count: int) -> "Numbers":
        """Take some rows of them."""
        return Numbers(*(t[start : start + count] for t in (self.r, self.x, self.g)))

    def some(self, count: int) -> "Numbers":
        """Take about so many of them."""
        every = max(1, self.r.numel() // count)
        return Numbers(*(t.flatten()[::every] for t in (self.r, self.x, self.g)))


def search(numbers: Numbers, shape: Callable[[float], Nll]) -> tuple[float, float]:
    """Number for which a shape has the smallest misfit, and that misfit."""
    few = numbers.some(400)
    found = minimize(lambda number: few.fit(shape(number))[1])
    return found, numbers.fit(shape(found))[1]


def minimize(misfit: Callable[[float], float], low: float = 1e-3, high: float = 1e4) -> float:
    """Positive number with the smallest misfit: on a grid of powers, then by golden sections."""

    def at(power: float) -> float:
        value = misfit(10**power)
        return 2.0 if math.isnan(value) else value

    step, ratio = 0.125, (math.sqrt(5) - 1) / 2
    count = round((math.log10(high) - math.log10(low)) / step) + 1
    best = min((math.log10(low) + step * i for i in range(count)), key=at)
    if at(best) > 0.3:  # no valley to look into
        return 10**best
    start, end = best - step, best + step
    while end - start > 1e-8:
        left, right = end - ratio * (end - start), start + ratio * (end - start)
        start, end = (start, right) if at(left) <= at(right) else (left, end)
    return 10 ** ((start + end) / 2)
