"""Problem set 2, the evidence lower bound: the inputs and the right answers."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vaecourse.coursework.oracle import Check, Draw, fixture, task, value_check
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
        hint = f"here the posteriors are {where}"
        yield value_check("kl_standard_normal", args, kl, hint=hint)


@task("ps2", points=2)
def reparameterize(draw: Draw) -> Iterator[Check]:
    """One draw and several; the gradient to both parameters; no noise but the given."""

    def z(loc: Tensor, log_scale: Tensor, eps: Tensor) -> Tensor:
        return loc + log_scale.exp() * eps

    for shape, spread in (((4, 3), 1.0), ((6, 4, 3), 1.0), ((2, 5, 4, 3), 0.5), ((1, 4, 3), 5.0)):
        args = [draw.normal(4, 3), draw.uniform(-spread, spread, 4, 3), draw.normal(*shape)]
        yield value_check(
            "reparameterize",
            args,
            z,
            gradients={0: "loc", 1: "log_scale"},
            hint=f"here eps has shape {shape}",
            global_seed=draw.integer(0, 10**6),
        )


@task("ps2", points=3)
def elbo(draw: Draw) -> Iterator[Check]:
    """One-sample bound of a linear decoder, with scales below and above 1."""
    for batch, data_dim, latent_dim in ((4, 5, 2), (1, 3, 3), (6, 2, 1), (3, 7, 4)):
        for scale in (draw.number(0.1, 0.6), draw.number(1.5, 3.0)):
            weight = draw.normal(data_dim, latent_dim)
            x, z = draw.normal(batch, data_dim), draw.normal(batch, latent_dim)
            loc, log_scale = draw.normal(batch, latent_dim), draw.normal(batch, latent_dim, scale=0.5)
            expected = -gaussian_nll(x, z @ weight.T, scale) - kl(loc, log_scale)
            decoder = fixture("linear_decoder", weight=weight)
            hint = f"here B = {batch}, D = {data_dim}, K = {latent_dim} and scale = {scale:.3g}"
            yield value_check("elbo", [x, z, decoder, scale, loc, log_scale], expected, hint=hint)


@task("ps2", points=4)
def evidence_gap(draw: Draw) -> Iterator[Check]:
    """Divergence from the exact posterior, zero where the posterior is that one."""
    for batch, data_dim, latent_dim, scale in (
        (4, 5, 2, draw.number(0.5, 1.0)),
        (3, 2, 4, draw.number(1.2, 2.0)),  # more latents than data
        (1, 6, 1, draw.number(0.2, 0.4)),
        (5, 3, 3, draw.number(0.5, 2.0)),
    ):
        weight, x = draw.normal(data_dim, latent_dim), draw.normal(batch, data_dim, scale=2.0)
        loc, log_scale = draw.normal(batch, latent_dim), draw.normal(batch, latent_dim, scale=0.5)
        hint = f"here B = {batch}, D = {data_dim} and K = {latent_dim}"
        yield _gap_check(weight, scale, x, loc, log_scale, hint)
    weight, loc, scale = draw.normal(6, 2), draw.normal(3, 2), 0.03
    x = loc @ weight.T + scale * draw.normal(3, 6)
    hint = "here the noise is small and q lies near the exact posterior"
    yield _gap_check(weight, scale, x, loc, draw.uniform(-4.0, -3.0, 3, 2), hint)
    for scale, hint in (
        (0.01, "here D = 200 and the noise is small"),
        (10.0, "here D = 200 and the noise is large"),
    ):
        weight, x = draw.normal(200, 2), draw.normal(2, 200, scale=scale)
        yield _gap_check(
            weight, scale, x, draw.normal(2, 2, scale=0.01), draw.uniform(-5.0, -4.0, 2, 2), hint
        )
    weight, scale = draw.normal(5, 1), draw.number(0.5, 1.5)
    precision = 1 + weight.square().sum() / scale**2
    x = draw.normal(4, 5)
    loc = x @ weight / scale**2 / precision
    log_scale = torch.full((4, 1), -0.5 * math.log(precision), dtype=torch.float64)
    hint = "here q is the exact posterior, so the gap is zero"
    yield _gap_check(weight, scale, x, loc, log_scale, hint)


def _gap_check(weight: Tensor, scale: float, x: Tensor, loc: Tensor, log_scale: Tensor, hint: str) -> Check:
    data_dim, latent_dim = weight.shape
    eye = torch.eye(latent_dim, dtype=torch.float64)
    precision = eye + weight.T @ weight / scale**2
    mean = torch.linalg.solve(precision, weight.T @ x.T / scale**2).T
    posterior = MultivariateNormal(mean, precision_matrix=precision)
    gap = kl_divergence(MultivariateNormal(loc, scale_tril=log_scale.exp().diag_embed()), posterior)
    covariance = weight @ weight.T + scale**2 * torch.eye(data_dim, dtype=torch.float64)
    evidence: Tensor = MultivariateNormal(torch.zeros(data_dim, dtype=torch.float64), covariance).log_prob(x)
    # a difference of two log densities is as exact as these, not as its own size
    tolerance = (1e-9 + 1e-7 * evidence.abs(), 1e-7)
    return value_check(
        "evidence_gap", [weight, scale, x, loc, log_scale], gap, tolerance=tolerance, hint=hint
    )


@task("ps2", points=2)
def importance_weighted_bound(draw: Draw) -> Iterator[Check]:
    """Log of the mean weight, for weights of any size, also where examples or draws are thousands apart."""
    for shape, loc, spread in (
        ((6, 4), 0.0, 1.0),
        ((1, 3), -2.0, 1.0),
        ((50, 2), -90.0, 5.0),
        ((5, 3), -1200.0, 3.0),  # every weight is zero as a number
        ((5, 3), 1200.0, 3.0),  # and infinite
        ((4, 1), -600.0, 300.0),
        ((3, 3), 0.0, 900.0),
    ):
        hint = f"here log_weights has shape {shape} and is about {loc:.0f}, give or take {spread:.0f}"
        yield _bound_check(draw.normal(*shape, loc=loc, scale=spread), hint)
    apart = torch.tensor([0.0, 4000.0, -4000.0], dtype=torch.float64)
    yield _bound_check(draw.normal(4, 3) + apart, "here the examples are thousands apart")
    yield _bound_check(draw.normal(3, 4) + apart[:, None], "here the draws of an example are thousands apart")


def _bound_check(log_weights: Tensor, hint: str) -> Check:
    expected = log_weights.logsumexp(0) - math.log(len(log_weights))
    return value_check("importance_weighted_bound", [log_weights], expected, hint=hint)
