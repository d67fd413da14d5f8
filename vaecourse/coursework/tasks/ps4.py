"""Problem set 4, from a Bernoulli to the cross-entropy: the inputs and the right answers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vaecourse import densities
from vaecourse.coursework.oracle import Check, Draw, task, value_check
from vaecourse.divergences import kl_standard_normal


def _binary(draw: Draw, *shape: int) -> Tensor:
    return (draw.uniform(0.0, 1.0, *shape) < 0.5).double()


@task("ps4", points=3)
def bernoulli_nll(draw: Draw) -> Iterator[Check]:
    """Black and white and grey pixels, logits of any size, the gradient with respect to the logits."""

    def nll(x: Tensor, logits: Tensor) -> Tensor:  # differentiable with autograd, exact at any size
        return (logits.relu() + (-logits.abs()).exp().log1p() - x * logits).sum(1)

    def check(x: Tensor, logits: Tensor, here: str) -> Check:
        tolerance = (1e-8 * x.shape[1], 0.0)
        return value_check([x, logits], nll, gradients={1: "logits"}, tolerance=tolerance, here=here)

    for batch, data_dim, spread, is_binary in (
        (4, 6, 2.0, True),
        (3, 5, 1.0, False),
        (1, 8, 15.0, True),
        (5, 1, 40.0, True),
        (4, 3, 300.0, False),
        (3, 4, 5000.0, True),
    ):
        logits = draw.normal(batch, data_dim, scale=spread).clamp(-1e4, 1e4)
        x = _binary(draw, batch, data_dim) if is_binary else draw.uniform(0.0, 1.0, batch, data_dim)
        yield check(x, logits, f"the logits are about {spread:.0f} in size")
    edge = torch.tensor([[-1e4, -800.0, -40.0, 40.0, 800.0, 1e4]] * 2, dtype=torch.float64)
    yield check(torch.stack([torch.zeros(6), torch.ones(6)]).double(), edge, "logits go to 1e4")
    x = _binary(draw, 3, 4)
    # no gradient here: right forms made of |logit| or max(logit, 0) have a corner there
    yield value_check([x, torch.zeros_like(x)], densities.bernoulli_nll, here="the logits are zero")


@task("ps4", points=2)
def bce_floor(draw: Draw) -> Iterator[Check]:
    """The entropy of grey pixels; zero for black and white ones."""

    def entropy(x: Tensor) -> Tensor:
        return -(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).sum(1)

    shapes = ((4, 6), (1, 3), (5, 1))
    small = 10 ** draw.uniform(-6.0, -3.0, 3, 4)
    for x, here in (
        *((draw.uniform(0.0, 1.0, *shape), f"x has shape {shape} and is grey") for shape in shapes),
        (_binary(draw, 4, 5), "x is black and white"),
        (torch.cat([draw.uniform(0.0, 1.0, 4, 3), _binary(draw, 4, 3)], dim=1), "some pixels are 0 or 1"),
        (small, "the pixels are nearly black"),
        (1 - small, "the pixels are nearly white"),
    ):
        yield value_check([x], entropy, here=here)


@task("ps4", points=3)
def log_normalizer(draw: Draw) -> Iterator[Check]:
    """Logits from 30 down to zero, to ten digits."""

    def check(logits: Tensor, here: str) -> Check:
        expected = densities.continuous_bernoulli_log_normalizer(logits)
        return value_check([logits], expected, tolerance=(0.0, 1e-10), here=here)

    for size in (30.0, 3.0, 0.3, 1e-2, 1e-4, 1e-6, 1e-8, 1e-12):
        logits = size * draw.uniform(0.5, 1.0, 2, 4) * (2 * _binary(draw, 2, 4) - 1)
        yield check(logits, f"the logits are about {size:g} in size")
    around = torch.tensor([0.0, 1e-15, -1e-15, 1e-300, 30.0, -30.0], dtype=torch.float64)
    yield check(around, "some logits are zero")
    yield check(draw.normal(3, 2, 4), "logits has three dimensions")


@task("ps4", points=2)
def bernoulli_vae_loss(draw: Draw) -> Iterator[Check]:
    """The batch averaged, the rest summed, with and without a beta."""

    def right(x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, beta: float = 1.0) -> Tensor:
        return (densities.bernoulli_nll(x, logits) + beta * kl_standard_normal(loc, log_scale)).mean()

    for batch, data_dim, latent_dim in ((4, 6, 2), (1, 3, 5), (7, 2, 3), (3, 20, 1)):
        for kwargs in ({}, {"beta": draw.number(0.1, 0.7)}, {"beta": draw.number(2.0, 6.0)}):
            x, logits = _binary(draw, batch, data_dim), draw.normal(batch, data_dim, scale=3.0)
            if kwargs.get("beta", 1.0) > 1:
                x, logits = draw.uniform(0.0, 1.0, batch, data_dim), 200 * logits
            args = [x, logits, draw.normal(batch, latent_dim), draw.normal(batch, latent_dim, scale=0.7)]
            yield value_check(args, right, kwargs=kwargs, tolerance=(1e-8 * data_dim, 1e-7))


@task("ps4", points=2)
def effective_beta(draw: Draw) -> Iterator[Check]:
    """Every pair of reductions, and the defaults."""

    def right(data_dim: int, latent_dim: int, recon: str = "mean", kl: str = "mean") -> float:
        return (data_dim if recon == "mean" else 1) / (latent_dim if kl == "mean" else 1)

    def draws() -> list[Any]:
        return [draw.integer(30, 900), draw.integer(2, 25)]

    for recon in ("mean", "sum"):
        for kl in ("mean", "sum"):
            yield value_check(draws(), right, kwargs={"recon": recon, "kl": kl})
    yield value_check(draws(), right)
    yield value_check([*draws(), "sum"], right)
