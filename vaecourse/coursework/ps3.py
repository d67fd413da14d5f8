"""Problem set 3, from a Gaussian to the squared error: the inputs and the right answers."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vaecourse.coursework.oracle import Check, Draw, task, value_check
from vaecourse.densities import gaussian_nll
from vaecourse.divergences import kl_standard_normal

REDUCTIONS = ("mean", "sum")


@task("ps3", points=3)
def gaussian_vae_loss(draw: Draw) -> Iterator[Check]:
    """All constants kept, the batch averaged, the rest summed."""
    for batch, data_dim, latent_dim in ((4, 6, 2), (1, 3, 5), (7, 1, 3), (3, 20, 1)):
        for scale in (draw.number(0.05, 0.5), draw.number(1.5, 4.0), 0.01):
            x_loc = draw.uniform(0.0, 1.0, batch, data_dim) + (1e4 if scale == 0.01 else 0.0)
            x = x_loc + draw.normal(batch, data_dim, scale=min(scale, 1.0))
            loc, log_scale = draw.normal(batch, latent_dim), draw.normal(batch, latent_dim, scale=0.7)
            hint = f"here B = {batch}, D = {data_dim}, K = {latent_dim} and scale = {scale:.3g}"
            yield _loss_check(x, x_loc, loc, log_scale, scale, hint)
    # constant and error cancel, so that the loss is nearly zero and all its digits count
    scale, x_loc = draw.number(0.05, 0.3), draw.uniform(0.0, 1.0, 3, 5)
    error = scale * math.sqrt(-math.log(2 * math.pi * scale**2)) if 2 * math.pi * scale**2 < 1 else 0.0
    loc, log_scale = draw.normal(3, 2, scale=1e-3), draw.normal(3, 2, scale=1e-3)
    yield _loss_check(x_loc + error, x_loc, loc, log_scale, scale, "here the loss is nearly zero")


def _loss_check(x: Tensor, x_loc: Tensor, loc: Tensor, log_scale: Tensor, scale: float, hint: str) -> Check:
    expected = (gaussian_nll(x, x_loc, scale) + kl_standard_normal(loc, log_scale)).mean()
    return value_check("gaussian_vae_loss", [x, x_loc, loc, log_scale, scale], expected, hint=hint)


@task("ps3", points=3)
def implied_scale(draw: Draw) -> Iterator[Check]:
    """Every pair of reductions, and the defaults."""

    def scale(weight: float, data_dim: int, latent_dim: int, recon: str = "mean", kl: str = "sum") -> float:
        recon_weight = 1 / data_dim if recon == "mean" else 1.0
        kl_weight = weight / latent_dim if kl == "mean" else weight
        return math.sqrt(kl_weight / (2 * recon_weight))

    def check(args: tuple[float, int, int], *reductions: str, named: bool = True) -> Check:
        recon, kl = (*reductions, *("mean", "sum")[len(reductions) :])
        given = {
            "kl_weight": f"{args[0]:.4g}",
            "data_dim": args[1],
            "latent_dim": args[2],
            "recon": recon,
            "kl": kl,
        }
        hint = "here " + ", ".join(f"{name} = {value}" for name, value in given.items())
        kwargs = dict(zip(("recon", "kl"), reductions, strict=False)) if named else {}
        values = args if named else (*args, *reductions)
        return value_check("implied_scale", values, scale(*args, recon, kl), kwargs=kwargs, hint=hint)

    for recon in reversed(REDUCTIONS):
        for kl in reversed(REDUCTIONS):
            for _ in range(2):
                args = (draw.number(1e-4, 5.0), draw.integer(30, 900), draw.integer(2, 25))
                yield check(args, recon, kl)
    yield check((draw.number(0.1, 3.0), draw.integer(30, 900), draw.integer(2, 25)))
    yield check((draw.number(0.1, 3.0), draw.integer(2, 10), draw.integer(20, 50)), "sum", named=False)
    yield check((draw.number(1e50, 1e51), draw.integer(30, 900), draw.integer(2, 25)))


@task("ps3", points=2)
def kl_weight_for(draw: Draw) -> Iterator[Check]:
    """Twice the variance per pixel."""
    for low, high in ((0.02, 0.2), (0.4, 0.9), (1.5, 3.0), (1.0, 1.0), (1e24, 1e25)):
        scale, data_dim = draw.number(low, high), draw.integer(2, 3000)
        hint = f"here scale = {scale:.4g} and data_dim = {data_dim}"
        yield value_check("kl_weight_for", [scale, data_dim], 2 * scale**2 / data_dim, hint=hint)


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
        hint = f"here x has shape {(batch, data_dim)} and the errors are about {abs(offset) + size:g} in size"
        yield value_check(
            "optimal_scale", [x, x_loc], lambda x, x_loc: (x - x_loc).square().mean().sqrt(), hint=hint
        )


@task("ps3", points=2)
def num_active_latents(draw: Draw) -> Iterator[Check]:
    """Eigenvalues above beta times the variance, in any order, at most as many as there are latents."""
    for latent_dim in (3, 10, 40):
        for beta in (None, draw.number(0.1, 0.6), draw.number(2.0, 5.0)):
            scale = draw.number(0.3, 2.0)
            threshold = (beta or 1.0) * scale**2
            above, below = draw.integer(4, 9), draw.integer(3, 9)
            eigenvalues = torch.cat(
                [threshold * draw.uniform(1.1, 6.0, above), threshold * draw.uniform(0.0, 0.9, below)]
            )[torch.randperm(above + below, generator=draw.generator)]
            kwargs = {} if beta is None else {"beta": beta}
            hint = (
                f"here scale = {scale:.4g}, beta = {beta or 1.0:.4g}, latent_dim = {latent_dim}, "
                f"and {above} of {above + below} eigenvalues lie above the threshold"
            )
            yield _count_check(eigenvalues, scale, latent_dim, min(above, latent_dim), kwargs, hint)
    for scale, factor, count in ((0.7, 0.5, 0), (0.7, 3.0, 6)):
        eigenvalues = scale**2 * factor * draw.uniform(0.9, 1.1, 6)
        yield _count_check(eigenvalues, scale, 8, count, {}, "here all or none lie above the threshold")


def _count_check(
    eigenvalues: Tensor, scale: float, latent_dim: int, count: int, kwargs: dict[str, float], hint: str
) -> Check:
    args = [eigenvalues, scale, latent_dim]
    return value_check("num_active_latents", args, float(count), kwargs=kwargs, hint=hint)
