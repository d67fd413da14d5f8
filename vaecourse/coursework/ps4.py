"""Problem set 4, from a Bernoulli to the cross-entropy: the inputs and the right answers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vaecourse import densities
from vaecourse.coursework.oracle import Check, Draw, task, value_check
from vaecourse.divergences import kl_standard_normal

REDUCTIONS = ("mean", "sum")


def _binary(draw: Draw, *shape: int) -> Tensor:
    return (draw.uniform(0.0, 1.0, *shape) < 0.5).double()


@task("ps4", points=3)
def bernoulli_nll(draw: Draw) -> Iterator[Check]:
    """Black and white and grey pixels, logits of any size, the gradient with respect to the logits."""
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
        yield _nll_check(x, logits, f"here the logits are about {spread:.0f} in size")
    edge = torch.tensor([[-1e4, -800.0, -40.0, 40.0, 800.0, 1e4]] * 2, dtype=torch.float64)
    yield _nll_check(torch.stack([torch.zeros(6), torch.ones(6)]).double(), edge, "here logits go to 1e4")
    zero, x = torch.zeros(3, 4, dtype=torch.float64), _binary(draw, 3, 4)
    # no gradient here: right forms made of |logit| or max(logit, 0) have a corner there
    yield value_check("bernoulli_nll", [x, zero], densities.bernoulli_nll, hint="here the logits are zero")


def _nll_check(x: Tensor, logits: Tensor, hint: str) -> Check:
    def nll(x: Tensor, logits: Tensor) -> Tensor:  # differentiable with autograd, exact at any size
        return (logits.relu() + (-logits.abs()).exp().log1p() - x * logits).sum(1)

    tolerance = (1e-8 * x.shape[1], 0.0)
    return value_check(
        "bernoulli_nll", [x, logits], nll, gradients={1: "logits"}, tolerance=tolerance, hint=hint
    )


@task("ps4", points=2)
def bce_floor(draw: Draw) -> Iterator[Check]:
    """The entropy of grey pixels; zero for black and white ones."""

    def entropy(x: Tensor) -> Tensor:
        return -(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).sum(1)

    for shape in ((4, 6), (1, 3), (5, 1)):
        hint = f"here x has shape {shape} and is grey"
        yield value_check("bce_floor", [draw.uniform(0.0, 1.0, *shape)], entropy, hint=hint)
    yield value_check("bce_floor", [_binary(draw, 4, 5)], entropy, hint="here x is black and white")
    mixed = torch.cat([draw.uniform(0.0, 1.0, 4, 3), _binary(draw, 4, 3)], dim=1)
    yield value_check("bce_floor", [mixed], entropy, hint="here some pixels are 0 or 1")
    small = 10 ** draw.uniform(-6.0, -3.0, 3, 4)
    yield value_check("bce_floor", [small], entropy, hint="here the pixels are nearly black")
    yield value_check("bce_floor", [1 - small], entropy, hint="here the pixels are nearly white")


@task("ps4", points=3)
def log_normalizer(draw: Draw) -> Iterator[Check]:
    """Logits from 30 down to zero, to ten digits."""
    for size in (30.0, 3.0, 0.3, 1e-2, 1e-4, 1e-6, 1e-8, 1e-12):
        logits = size * draw.uniform(0.5, 1.0, 2, 4) * (2 * _binary(draw, 2, 4) - 1)
        hint = f"here the logits are about {size:g} in size"
        yield _normalizer_check(logits, hint)
    around = torch.tensor([0.0, 1e-15, -1e-15, 1e-300, 30.0, -30.0], dtype=torch.float64)
    yield _normalizer_check(around, "here some logits are zero")
    yield _normalizer_check(draw.normal(3, 2, 4), "here logits has three dimensions")


def _normalizer_check(logits: Tensor, hint: str) -> Check:
    expected = densities.continuous_bernoulli_log_normalizer(logits)
    return value_check("log_normalizer", [logits], expected, tolerance=(0.0, 1e-10), hint=hint)


@task("ps4", points=2)
def bernoulli_vae_loss(draw: Draw) -> Iterator[Check]:
    """The batch averaged, the rest summed, with and without a beta."""
    for batch, data_dim, latent_dim in ((4, 6, 2), (1, 3, 5), (7, 2, 3), (3, 20, 1)):
        for beta in (None, draw.number(0.1, 0.7), draw.number(2.0, 6.0)):
            x, logits = _binary(draw, batch, data_dim), draw.normal(batch, data_dim, scale=3.0)
            if beta is not None and beta > 1:
                x, logits = draw.uniform(0.0, 1.0, batch, data_dim), 200 * logits
            loc, log_scale = draw.normal(batch, latent_dim), draw.normal(batch, latent_dim, scale=0.7)
            nll = densities.bernoulli_nll(x, logits)
            expected = (nll + (1.0 if beta is None else beta) * kl_standard_normal(loc, log_scale)).mean()
            hint = f"here B = {batch}, D = {data_dim}, K = {latent_dim}"
            yield value_check(
                "bernoulli_vae_loss",
                [x, logits, loc, log_scale],
                expected,
                kwargs={} if beta is None else {"beta": beta},
                tolerance=(1e-8 * data_dim, 1e-7),
                hint=hint + ("" if beta is None else f" and beta = {beta:.3g}"),
            )


@task("ps4", points=2)
def effective_beta(draw: Draw) -> Iterator[Check]:
    """Every pair of reductions, and the defaults."""

    def beta(data_dim: int, latent_dim: int, recon: str = "mean", kl: str = "mean") -> float:
        return (data_dim if recon == "mean" else 1) / (latent_dim if kl == "mean" else 1)

    for recon in REDUCTIONS:
        for kl in REDUCTIONS:
            args = (draw.integer(30, 900), draw.integer(2, 25))
            kwargs = {"recon": recon, "kl": kl}
            hint = f'here recon = "{recon}" and kl = "{kl}"'
            yield value_check("effective_beta", args, beta(*args, recon, kl), kwargs=kwargs, hint=hint)
    args = (draw.integer(30, 900), draw.integer(2, 25))
    yield value_check("effective_beta", args, beta(*args), hint="here recon and kl are left out")
    yield value_check("effective_beta", [*args, "sum"], beta(*args, "sum"), hint="here kl is left out")
