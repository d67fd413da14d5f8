"""Problem set 3, from a Gaussian to the squared error: the inputs and the right answers."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vaecourse.coursework.oracle import Check, Draw, task, value_check
from vaecourse.densities import gaussian_nll
from vaecourse.divergences import kl_standard_normal


@task("ps3", points=3)
def gaussian_vae_loss(draw: Draw) -> Iterator[Check]:
    """All constants kept, the batch averaged, the rest summed."""

    def right(x: Tensor, x_loc: Tensor, loc: Tensor, log_scale: Tensor, scale: float) -> Tensor:
        return (gaussian_nll(x, x_loc, scale) + kl_standard_normal(loc, log_scale)).mean()

    for batch, data_dim, latent_dim in ((4, 6, 2), (1, 3, 5), (7, 1, 3), (3, 20, 1)):
        for scale in (draw.number(0.05, 0.5), draw.number(1.5, 4.0), 0.01):
            x_loc = draw.uniform(0.0, 1.0, batch, data_dim) + (1e4 if scale == 0.01 else 0.0)
            x = x_loc + draw.normal(batch, data_dim, scale=min(scale, 1.0))
            loc, log_scale = draw.normal(batch, latent_dim), draw.normal(batch, latent_dim, scale=0.7)
            yield value_check([x, x_loc, loc, log_scale, scale], right)
    # constant and error cancel, so that the loss is nearly zero and all its digits count
    scale, x_loc = draw.number(0.05, 0.3), draw.uniform(0.0, 1.0, 3, 5)
    error = scale * math.sqrt(-math.log(2 * math.pi * scale**2))
    loc, log_scale = draw.normal(3, 2, scale=1e-3), draw.normal(3, 2, scale=1e-3)
    yield value_check([x_loc + error, x_loc, loc, log_scale, scale], right, here="the loss is nearly zero")


@task("ps3", points=3)
def implied_scale(draw: Draw) -> Iterator[Check]:
    """Every pair of reductions, and the defaults."""

    def right(
        kl_weight: float, data_dim: int, latent_dim: int, recon: str = "mean", kl: str = "sum"
    ) -> float:
        pixels = data_dim if recon == "mean" else 1
        return math.sqrt(kl_weight / 2 * pixels / (latent_dim if kl == "mean" else 1))

    def draws(low: float, high: float) -> list[Any]:
        return [draw.number(low, high), draw.integer(30, 900), draw.integer(2, 25)]

    for recon in ("sum", "mean"):
        for kl in ("sum", "mean"):
            for _ in range(2):
                yield value_check(draws(1e-4, 5.0), right, kwargs={"recon": recon, "kl": kl})
    yield value_check(draws(0.1, 3.0), right)
    yield value_check([draw.number(0.1, 3.0), draw.integer(2, 10), draw.integer(20, 50), "sum"], right)
    yield value_check(draws(1e50, 1e51), right)


@task("ps3", points=2)
def kl_weight_for(draw: Draw) -> Iterator[Check]:
    """Twice the variance per pixel."""

    def right(scale: float, data_dim: int) -> float:
        return 2 * scale**2 / data_dim

    for low, high in ((0.02, 0.2), (0.4, 0.9), (1.5, 3.0), (1.0, 1.0), (1e24, 1e25)):
        yield value_check([draw.number(low, high), draw.integer(2, 3000)], right)


@task("ps3", points=2)
def optimal_scale(draw: Draw) -> Iterator[Check]:
    """Root of the mean squared error over batch and pixels, large and tiny, with a mean or far from zero."""
    for batch, data_dim, offset, size, level in (
        (5, 8, 0.0, 1.0, 0.0),
        (1, 6, 2.0, 0.3, 0.0),
        (9, 1, -1.0, 3.0, 0.0),
        (3, 4, 20.0, 1.0, 0.0),
        (4, 5, 0.0, 1e-4, 0.0),
        (4, 5, 0.0, 0.1, 1000.0),
    ):
        x_loc = draw.normal(batch, data_dim, loc=level)
        x = x_loc + draw.normal(batch, data_dim, loc=offset, scale=size)
        here = f"x has shape {(batch, data_dim)} and the errors are about {abs(offset) + size:g} in size"
        yield value_check([x, x_loc], lambda x, x_loc: (x - x_loc).square().mean().sqrt(), here=here)


@task("ps3", points=2)
def num_active_latents(draw: Draw) -> Iterator[Check]:
    """Eigenvalues above beta times the variance, in any order, at most as many as there are latents."""
    for latent_dim in (3, 10, 40):
        for kwargs in ({}, {"beta": draw.number(0.1, 0.6)}, {"beta": draw.number(2.0, 5.0)}):
            scale, beta = draw.number(0.3, 2.0), kwargs.get("beta", 1.0)
            above, below = draw.integer(4, 9), draw.integer(3, 9)
            ratios = torch.cat([draw.uniform(1.1, 6.0, above), draw.uniform(0.0, 0.9, below)])
            order = torch.randperm(above + below, generator=draw.generator)
            args = [beta * scale**2 * ratios[order], scale, latent_dim]
            here = (
                f"scale = {scale:.4g}, beta = {beta:.4g}, latent_dim = {latent_dim}, "
                f"and {above} of {above + below} eigenvalues lie above the threshold"
            )
            yield value_check(args, float(min(above, latent_dim)), kwargs=kwargs, here=here)
    for factor, count in ((0.5, 0), (3.0, 6)):
        args = [0.7**2 * factor * draw.uniform(0.9, 1.1, 6), 0.7, 8]
        yield value_check(args, float(count), here="all or none lie above the threshold")
