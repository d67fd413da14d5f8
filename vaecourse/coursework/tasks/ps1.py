"""Problem set 1, Gaussian regression: the inputs and the right answers."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vaecourse.coursework.oracle import Check, Draw, task, value_check

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def _log_density(y: Tensor, loc: Tensor, scale: float | Tensor) -> Tensor:
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return -0.5 * ((y - loc) / scale).square() - scale.log() - HALF_LOG_2PI


def _sum(y: Tensor, loc: Tensor, scale: float) -> Tensor:
    return -_log_density(y, loc, scale).sum()


def _distance_of_density_one(scale: float) -> float:
    return scale * math.sqrt(-2 * (math.log(scale) + HALF_LOG_2PI))


@task("ps1", points=3)
def normal_log_density(draw: Draw) -> Iterator[Check]:
    """Elementwise log density, with numbers and tensors for the scale, broadcast, and far out."""
    normal, uniform, number = draw.normal, draw.uniform, draw.number
    y, loc, near = normal(5, 3), normal(5, 3), normal(4)
    small, tiny = number(0.05, 0.3), 10 ** number(-6.0, -5.0)
    where_one = near + _distance_of_density_one(small) * uniform(0.99, 1.01, 4)
    for args, here in (
        ((y, loc, number(0.2, 0.8)), "the scale is a Python number below 1"),
        ((y, loc, number(2.0, 5.0)), "the scale is a Python number above 1"),
        ((y, loc, uniform(0.3, 3.0, 5, 3)), "every element has its own scale"),
        ((y, normal(3), uniform(0.3, 3.0, 5, 1)), "the three shapes are broadcast"),
        ((normal(1), normal(4, 1), uniform(0.3, 3.0, 3)), "y has the smallest shape"),
        ((normal(), normal(), uniform(0.3, 3.0)), "all three have no dimensions"),
        ((normal(4, loc=1000.0), normal(4), number(0.5, 2.0)), "y is far from loc"),
        ((where_one, near, small), "the density is nearly 1"),
        ((near + tiny * normal(4), near, tiny), "the scale is about 1e-6"),
        ((y, loc, 10 ** number(5.0, 6.0)), "the scale is about 1e6"),
    ):
        yield value_check(args, _log_density, here=here)


@task("ps1", points=2)
def regression_nll(draw: Draw) -> Iterator[Check]:
    """Sum over all elements, in one and two dimensions."""
    for shape in ((7,), (5, 3), (1,), (2, 3, 4), (40, 50)):
        for scale in (draw.number(0.2, 0.7), draw.number(1.5, 4.0)):
            yield value_check((draw.normal(*shape), draw.normal(*shape), scale), _sum)
    yield value_check((draw.normal(4, loc=500.0), draw.normal(4), 0.5), _sum, here="y is far from loc")
    loc, scale = draw.normal(6), draw.number(0.05, 0.3)
    yield value_check((loc + 1e-5 * draw.normal(6), loc, 1e-5), _sum, here="the scale is 1e-5")
    y = loc + _distance_of_density_one(scale) * draw.uniform(0.999, 1.001, 6)
    yield value_check((y, loc, scale), _sum, here="the sum is nearly zero")


@task("ps1", points=2)
def best_scale(draw: Draw) -> Iterator[Check]:
    """Root of the mean squared residual, large and tiny, with a mean, far from zero, or a single one."""
    for shape, offset, size, level in (
        ((9,), 0.0, 1.0, 0.0),
        ((6, 4), 3.0, 0.5, 0.0),
        ((2,), -1.0, 2.0, 0.0),
        ((1,), 0.5, 0.1, 0.0),
        ((2, 3, 4), 10.0, 1.0, 0.0),
        ((5, 2), 0.0, 1e-7, 0.0),
        ((5, 2), 0.0, 1e7, 0.0),
        ((5, 2), 0.0, 0.01, 1e4),
    ):
        loc = draw.normal(*shape, scale=min(size, 1.0)) + level
        y = loc + draw.normal(*shape, loc=offset, scale=size)
        here = f"y has shape {shape} and the errors are about {abs(offset) + size:g} in size"
        yield value_check([y, loc], lambda y, loc: (y - loc).square().mean().sqrt(), here=here)


@task("ps1", points=2)
def learning_rate_for_sse(draw: Draw) -> Iterator[Check]:
    """The rate over twice the variance."""

    def right(learning_rate: float, scale: float) -> float:
        return learning_rate / (2 * scale**2)

    for low, high in ((0.05, 0.3), (0.4, 0.9), (1.5, 3.0), (10.0, 50.0), (1e-25, 1e-24)):
        yield value_check([draw.number(1e-3, 1.0), draw.number(low, high)], right)


@task("ps1", points=2)
def ridge_penalty(draw: Draw) -> Iterator[Check]:
    """Ratio of the variances."""

    def right(noise_scale: float, prior_scale: float) -> float:
        return noise_scale**2 / prior_scale**2

    for low, high in ((0.05, 0.3), (0.4, 0.9), (1.5, 3.0), (10.0, 50.0), (1e24, 1e25)):
        yield value_check([draw.number(low, high), draw.number(0.2, 5.0)], right)
