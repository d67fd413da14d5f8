"""Problem set 2, the evidence lower bound: the inputs and the right answers."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vaecourse.coursework.oracle import Call, Check, Draw, task, value_check
from vaecourse.densities import gaussian_nll
from vaecourse.divergences import kl_standard_normal as kl


@task("ps2", points=2)
def kl_standard_normal(draw: Draw) -> Iterator[Check]:
    """Wide, narrow, near the prior and far from it; one latent, one example."""
    for shape, spread, low, high, where in (
        ((5, 3), 1.0, -1.0, 1.0, "ordinary"),
        ((1, 4), 3.0, -1.0, 0.5, "of a single example"),
        ((6, 1), 1.0, -1.0, 1.0, "of a single latent"),
        ((3, 2), 10.0, 2.0, 5.0, "wide and far from the prior"),
        ((3, 2), 2.0, -5.0, -4.0, "narrow"),
        ((4, 3), 0.2, -0.1, 0.1, "near the prior"),
        ((4, 3), 1e-3, -1e-3, 1e-3, "very near the prior"),
    ):
        args = [draw.uniform(-spread, spread, *shape), draw.uniform(low, high, *shape)]
        yield value_check(args, kl, here=f"the posteriors are {where}")


@task("ps2", points=2)
def reparameterize(draw: Draw) -> Iterator[Check]:
    """One draw and several; the gradient to both parameters; no noise but `eps`."""
    for shape, spread in (((4, 3), 1.0), ((6, 4, 3), 1.0), ((2, 5, 4, 3), 0.5), ((1, 4, 3), 5.0)):
        yield value_check(
            [draw.normal(4, 3), draw.uniform(-spread, spread, 4, 3), draw.normal(*shape)],
            lambda loc, log_scale, eps: loc + log_scale.exp() * eps,
            gradients={0: "loc", 1: "log_scale"},
            more={"global_seed": draw.seed()},
        )


@task("ps2", points=3)
def elbo(draw: Draw) -> Iterator[Check]:
    """One-sample bound of a linear decoder, with scales below and above 1."""

    def right(x: Tensor, z: Tensor, decode_loc: Call, scale: float, loc: Tensor, log_scale: Tensor) -> Tensor:
        return -gaussian_nll(x, z @ decode_loc["weight"].T, scale) - kl(loc, log_scale)

    for batch, data_dim, latent_dim in ((4, 5, 2), (1, 3, 3), (6, 2, 1), (3, 7, 4)):
        for scale in (draw.number(0.1, 0.6), draw.number(1.5, 3.0)):
            decoder = {"fixture": "linear_decoder", "weight": draw.normal(data_dim, latent_dim)}
            x, z = draw.normal(batch, data_dim), draw.normal(batch, latent_dim)
            loc, log_scale = draw.normal(batch, latent_dim), draw.normal(batch, latent_dim, scale=0.5)
            yield value_check([x, z, decoder, scale, loc, log_scale], right)


@task("ps2", points=4)
def evidence_gap(draw: Draw) -> Iterator[Check]:
    """Divergence from the exact posterior, zero if q is that posterior."""
    normal, uniform, number = draw.normal, draw.uniform, draw.number
    for batch, data_dim, latent_dim, scale in (
        (4, 5, 2, number(0.5, 1.0)),
        (3, 2, 4, number(1.2, 2.0)),  # more latents than data
        (1, 6, 1, number(0.2, 0.4)),
        (5, 3, 3, number(0.5, 2.0)),
    ):
        weight, x = normal(data_dim, latent_dim), normal(batch, data_dim, scale=2.0)
        loc, log_scale = normal(batch, latent_dim), normal(batch, latent_dim, scale=0.5)
        yield _gap_check(
            weight, scale, x, loc, log_scale, f"B = {batch}, D = {data_dim} and K = {latent_dim}"
        )
    weight, loc, scale = normal(6, 2), normal(3, 2), 0.03
    x = loc @ weight.T + scale * normal(3, 6)
    here = "the noise is small and q lies near the exact posterior"
    yield _gap_check(weight, scale, x, loc, uniform(-4.0, -3.0, 3, 2), here)
    for scale, size in ((0.01, "small"), (10.0, "large")):
        weight, x, loc = normal(200, 2), normal(2, 200, scale=scale), normal(2, 2, scale=0.01)
        log_scale = uniform(-5.0, -4.0, 2, 2)
        yield _gap_check(weight, scale, x, loc, log_scale, f"D = 200 and the noise is {size}")
    weight, x, scale = normal(5, 1), normal(4, 5), number(0.5, 1.5)
    precision = 1 + weight.square().sum() / scale**2
    loc = x @ weight / scale**2 / precision
    log_scale = torch.full_like(loc, -0.5 * math.log(precision))
    yield _gap_check(weight, scale, x, loc, log_scale, "q is the exact posterior, so the gap is zero")


def _gap_check(weight: Tensor, scale: float, x: Tensor, loc: Tensor, log_scale: Tensor, here: str) -> Check:
    data_dim, latent_dim = weight.shape
    precision = torch.eye(latent_dim, dtype=torch.float64) + weight.T @ weight / scale**2
    mean = torch.linalg.solve(precision, weight.T @ x.T / scale**2).T
    posterior = MultivariateNormal(mean, precision_matrix=precision)
    gap = kl_divergence(MultivariateNormal(loc, scale_tril=log_scale.exp().diag_embed()), posterior)
    covariance = weight @ weight.T + scale**2 * torch.eye(data_dim, dtype=torch.float64)
    evidence: Tensor = MultivariateNormal(torch.zeros_like(x[0]), covariance).log_prob(x)
    # a difference of two log densities is as exact as these, not as its own size
    tolerance = (1e-9 + 1e-7 * evidence.abs(), 1e-7)
    return value_check([weight, scale, x, loc, log_scale], gap, tolerance=tolerance, here=here)


@task("ps2", points=2)
def importance_weighted_bound(draw: Draw) -> Iterator[Check]:
    """Log of the mean weight, for weights of any size, also where examples or draws are thousands apart."""

    def check(log_weights: Tensor, here: str) -> Check:
        return value_check([log_weights], lambda w: w.logsumexp(0) - math.log(len(w)), here=here)

    for shape, loc, spread in (
        ((6, 4), 0.0, 1.0),
        ((1, 3), -2.0, 1.0),
        ((50, 2), -90.0, 5.0),
        ((5, 3), -1200.0, 3.0),  # every weight is zero as a number
        ((5, 3), 1200.0, 3.0),  # and infinite
        ((4, 1), -600.0, 300.0),
        ((3, 3), 0.0, 900.0),
    ):
        here = f"log_weights has shape {shape} and is about {loc:.0f}, give or take {spread:.0f}"
        yield check(draw.normal(*shape, loc=loc, scale=spread), here)
    apart = torch.tensor([0.0, 4000.0, -4000.0], dtype=torch.float64)
    yield check(draw.normal(4, 3) + apart, "the examples are thousands apart")
    yield check(draw.normal(3, 4) + apart[:, None], "the draws of an example are thousands apart")
