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


@task("ps1", points=3)
def normal_log_density(draw: Draw) -> Iterator[Check]:
    """Elementwise log density, with numbers and tensors for the scale, broadcast, and far out."""

    def check(y: Tensor, loc: Tensor, scale: float | Tensor, hint: str = "") -> Check:
        return value_check("normal_log_density", [y, loc, scale], _log_density, hint=hint)

    y, loc = draw.normal(5, 3), draw.normal(5, 3)
    yield check(y, loc, draw.number(0.2, 0.8), "here the scale is a Python number below 1")
    yield check(y, loc, draw.number(2.0, 5.0), "here the scale is a Python number above 1")
    yield check(y, loc, draw.uniform(0.3, 3.0, 5, 3), "here every element has its own scale")
    yield check(y, draw.normal(3), draw.uniform(0.3, 3.0, 5, 1), "here the three shapes are broadcast")
    yield check(draw.normal(1), draw.normal(4, 1), draw.uniform(0.3, 3.0, 3), "here y has the smallest shape")
    yield check(draw.normal(), draw.normal(), draw.uniform(0.3, 3.0), "here all three have no dimensions")
    yield check(draw.normal(4, loc=1000.0), draw.normal(4), draw.number(0.5, 2.0), "here y is far from loc")
    scale = draw.number(0.05, 0.3)
    distance = scale * math.sqrt(-2 * (math.log(scale) + HALF_LOG_2PI))
    near = draw.normal(4)
    yield check(near + distance * draw.uniform(0.99, 1.01, 4), near, scale, "here the density is nearly 1")
    tiny = 10 ** draw.number(-6.0, -5.0)
    near = draw.normal(4)
    yield check(near + tiny * draw.normal(4), near, tiny, "here the scale is about 1e-6")
    yield check(y, loc, 10 ** draw.number(5.0, 6.0), "here the scale is about 1e6")


@task("ps1", points=2)
def regression_nll(draw: Draw) -> Iterator[Check]:
    """Sum over all elements, in one and two dimensions."""

    def check(y: Tensor, loc: Tensor, scale: float, hint: str) -> Check:
        return value_check(
            "regression_nll", [y, loc, scale], lambda *args: -_log_density(*args).sum(), hint=hint
        )

    for shape in ((7,), (5, 3), (1,), (2, 3, 4), (40, 50)):
        for scale in (draw.number(0.2, 0.7), draw.number(1.5, 4.0)):
            hint = f"here y and loc have shape {shape} and scale = {scale:.3g}"
            yield check(draw.normal(*shape), draw.normal(*shape), scale, hint)
    yield check(draw.normal(4, loc=500.0), draw.normal(4), 0.5, "here y is far from loc")
    loc = draw.normal(5)
    yield check(loc + 1e-5 * draw.normal(5), loc, 1e-5, "here the scale is 1e-5")
    scale = draw.number(0.05, 0.3)
    distance = scale * math.sqrt(-2 * (math.log(scale) + HALF_LOG_2PI))
    loc = draw.normal(6)
    yield check(loc + distance * draw.uniform(0.999, 1.001, 6), loc, scale, "here the sum is nearly zero")


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
        hint = f"here y has shape {shape} and the errors are about {abs(offset) + size:g} in size"
        # y and loc round to 16 digits, so the small errors between large numbers carry fewer
        yield value_check("best_scale", [y, loc], lambda y, loc: (y - loc).square().mean().sqrt(), hint=hint)


@task("ps1", points=2)
def learning_rate_for_sse(draw: Draw) -> Iterator[Check]:
    """The rate over twice the variance."""
    for low, high in ((0.05, 0.3), (0.4, 0.9), (1.5, 3.0), (10.0, 50.0), (1e-25, 1e-24)):
        rate, scale = draw.number(1e-3, 1.0), draw.number(low, high)
        hint = f"here learning_rate is {rate:.4g} and scale is {scale:.4g}"
        yield value_check("learning_rate_for_sse", [rate, scale], rate / (2 * scale**2), hint=hint)


@task("ps1", points=2)
def ridge_penalty(draw: Draw) -> Iterator[Check]:
    """Ratio of the variances."""
    for low, high in ((0.05, 0.3), (0.4, 0.9), (1.5, 3.0), (10.0, 50.0), (1e24, 1e25)):
        noise, prior = draw.number(low, high), draw.number(0.2, 5.0)
        hint = f"here noise_scale is {noise:.4g} and prior_scale is {prior:.4g}"
        yield value_check("ridge_penalty", [noise, prior], noise**2 / prior**2, hint=hint)
