"""Every kind of reading by name, what is said of it, and losses that must not be called a negative ELBO."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, distributions, nn
from torch.nn import functional as F
from torch.nn.functional import binary_cross_entropy as bce
from torch.nn.functional import binary_cross_entropy_with_logits as bce_with_logits
from torch.nn.functional import mse_loss

from tests.diagnosis.found_losses import kl_of, kl_terms, sse
from vaecourse.densities import continuous_bernoulli_nll
from vaecourse.diagnosis import LossDiagnosis, diagnose_loss
from vaecourse.diagnosis.probing.calling import find_device

D, K = 48, 6


def diagnose(loss_fn, **settings) -> LossDiagnosis:
    return diagnose_loss(loss_fn, **{"data_dim": D, "latent_dim": K, **settings})


def with_kl(recon):
    return lambda r, x, mu, logvar: recon(r, x) + kl_of(mu, logvar).mean()


def with_error(kl):
    return lambda r, x, mu, v: 0.5 * sse(r, x).mean() + kl(mu, v)


def summed(elementwise: Tensor) -> Tensor:
    return elementwise.sum(1).mean()


def each(loss, *arguments: Tensor, **options) -> Tensor:
    return summed(loss(*arguments, reduction="none", **options))


# ---- likelihoods ----


def tokens(r, x):
    return (
        F.cross_entropy(r.view(-1, 12, 4).transpose(1, 2), x.view(-1, 12, 4).argmax(-1), reduction="none")
        .sum(1)
        .mean()
    )


def tokens_side_by_side(r, x):  # (batch, categories, positions)
    return F.cross_entropy(r.view(-1, 4, 12), x.view(-1, 4, 12), reduction="none").sum(1).mean()


def table(r, x):
    numbers = 0.5 * (r[:, :20] - x[:, :20]).square().sum(1) / 0.04
    flags = bce_with_logits(r[:, 20:40], x[:, 20:40], reduction="none").sum(1)
    return (numbers + flags + F.cross_entropy(r[:, 40:], x[:, 40:], reduction="none")).mean()


def negative_binomial(r, x, **options):
    return -summed(distributions.NegativeBinomial(3.0, validate_args=False, **options).log_prob(x))


def discretized_logistic(r, x, scale=0.05):
    upper, lower = (x - r + 1 / 510) / scale, (x - r - 1 / 510) / scale
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower)
    ends = torch.where(x <= 0, F.logsigmoid(upper), F.logsigmoid(-lower))
    return -summed(torch.where((x <= 0) | (x >= 1), ends, inside))


ROOT = torch.linalg.cholesky(torch.eye(D) + 0.3 * torch.ones(D, D)).double()
WEIGHTS = torch.linspace(1, 4, D)
LIKELIHOODS = {  # the reconstruction term, family, what recon_x is, words
    "poisson": (lambda r, x: each(F.poisson_nll_loss, r, x), "poisson", "log_rate", "logarithm of its rate"),
    "poisson-rate": (
        lambda r, x: each(F.poisson_nll_loss, r, x, log_input=False),
        "poisson",
        "rate",
        "as its rate",
    ),
    "continuous-bernoulli": (
        lambda r, x: continuous_bernoulli_nll(x, r).mean(),
        "continuous_bernoulli",
        "logits",
        "continuous Bernoulli",
    ),
    "tokens": (tokens, "categorical", "logits", "4 categories in each of 12 groups"),
    "tokens-side-by-side": (
        tokens_side_by_side,
        "categorical",
        "logits",
        "4 categories in each of 12 groups",
    ),
    "counts": (lambda r, x: -summed(r.log_softmax(1) * x), "multinomial", "logits", "over all 48 numbers"),
    "negative-binomial": (
        lambda r, x: negative_binomial(r, x, logits=r),
        "negative_binomial",
        "logits",
        "the dispersion 3 (",
    ),
    "negative-binomial-of-log-mean": (
        lambda r, x: negative_binomial(r, x, logits=r - math.log(3)),
        "negative_binomial",
        "log_mean",
        "dispersion 3",
    ),
    "discretised-logistic": (
        discretized_logistic,
        "discretized_logistic",
        "loc",
        "fixed scale 0.05, integrated",
    ),
    "log-cosh": (lambda r, x: summed((r - x).cosh().log()), "hyperbolic_secant", "loc", "log cosh(1 t)"),
    "cauchy": (lambda r, x: summed(((r - x) / 0.2).square().log1p()), "student_t", "loc", "log(1 + t²/0.04)"),
    "weighted": (
        lambda r, x: 0.5 * summed((r - x).square() * WEIGHTS),
        "gaussian_per_element",
        "loc",
        "relative to the largest, 0.25 to 1",
    ),
    "weighted-absolute": (
        lambda r, x: summed((r - x).abs() * WEIGHTS),
        "laplace_per_element",
        "loc",
        "relative to the largest, 0.25 to 1",
    ),
    "masked-entropy": (
        lambda r, x: bce(r, x, reduction="none")[:, ::2].sum(1).mean(),
        "bernoulli_per_element",
        "probabilities",
        "24 of the 48 numbers",
    ),
    "weighted-examples": (
        lambda r, x: (sse(r, x) * torch.linspace(1, 2, 8)).mean(),
        "gaussian_per_example",
        "loc",
        "place in the batch",
    ),
    "correlated": (
        lambda r, x: ((r - x) @ ROOT).square().sum(1).mean(),
        "gaussian_correlated",
        "loc",
        "correlated",
    ),
    "table": (table, "mixed", None, "20 of a Gaussian"),
    "optimal-scale": (
        lambda r, x: D / 2 * mse_loss(r, x).log(),
        "gaussian_optimal_scale",
        "loc",
        "best one for these errors",
    ),
    "tanh-inside": (lambda r, x: sse(r.tanh(), x).mean(), "gaussian", "tanh", "whose tanh is its location"),
}


@pytest.mark.parametrize(("recon", "family", "form", "words"), LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_likelihood_has_its_own_name_and_is_an_elbo(recon, family, form, words):
    found = diagnose(with_kl(recon))
    assert (found.family, found.parameterization, found.kl_fault) == (family, form, None)
    assert found.is_elbo and words in found.explain()


FIXED = {
    "poisson",
    "poisson-rate",
    "tokens",
    "tokens-side-by-side",
    "counts",
    "negative-binomial",
    "log-cosh",
}
FIXED |= {"continuous-bernoulli", "discretised-logistic", "masked-entropy", "optimal-scale"}


@pytest.mark.parametrize("name", sorted(FIXED | {"table"}))
def test_likelihood_without_a_free_scale_needs_a_weight_of_one(name):
    recon = LIKELIHOODS[name][0]
    found = diagnose(lambda r, x, m, v: recon(r, x) + 4 * kl_of(m, v).mean())
    assert found.beta == (pytest.approx(4, rel=1e-4) if name in FIXED else None)
    assert not found.is_elbo
    assert name == "table" or "multiply the KL term by 0.25" in found.explain()


def test_dispersion_may_differ_between_the_numbers():
    theta = torch.linspace(0.5, 9, D)

    def loss_fn(r, x, mu, v):
        log_p = distributions.NegativeBinomial(theta, logits=(r / theta).log(), validate_args=False).log_prob(
            x
        )
        return (kl_of(mu, v) - log_p.sum(1)).mean()

    found = diagnose(loss_fn)
    assert (found.family, found.is_elbo) == ("negative_binomial", True)
    assert "of each number, from 0.5 to 9" in found.explain()


@pytest.mark.parametrize("nu", [1.0, 4.0])
def test_student_t_has_the_scale_and_freedom_of_its_weights(nu):
    found = diagnose(with_kl(lambda r, x: -summed(distributions.StudentT(nu, r, 0.3).log_prob(x))))
    assert found.scale == pytest.approx(0.3, rel=1e-6) and found.is_elbo
    heavy = diagnose(lambda r, x, m, v: summed((r - x).square().log1p()) + 2 * kl_of(m, v).mean())
    assert heavy.scale is None and not heavy.is_elbo  # nu = 0 is no density


@pytest.mark.parametrize(
    "link", ["log-scale", "log-variance", "scale before a softplus", "scale", "variance"]
)
def test_predicted_scale_is_read_with_its_link(link):
    scale = {
        "log-scale": torch.exp,
        "log-variance": lambda s: (0.5 * s).exp(),
        "scale before a softplus": F.softplus,
        "scale": torch.abs,
        "variance": torch.sqrt,
    }[link]

    def loss_fn(r, x, mu, v):
        mean, raw = r.chunk(2, 1)  # twice as wide as x
        return (kl_of(mu, v) - distributions.Normal(mean, scale(raw)).log_prob(x).sum(1)).mean()

    found = diagnose(loss_fn)
    assert (found.family, found.beta, found.is_elbo) == ("gaussian_predicted_scale", pytest.approx(1), True)
    assert f"the second the {link}." in found.explain() and "twice as many as x" in found.explain()


NO_LIKELIHOODS = {  # the reconstruction term, family, words
    "huber": (lambda r, x: each(F.huber_loss, r, x, delta=0.5), "huber", "up to an error of 0.5"),
    "smooth-l1": (lambda r, x: each(F.smooth_l1_loss, r, x), "huber", "up to an error of 1"),
    "wide-huber": (lambda r, x: each(F.huber_loss, r, x, delta=8.0), "huber", "leaves out"),
    "pos-weight": (
        lambda r, x: each(bce_with_logits, r, x, pos_weight=torch.tensor(3.0)),
        "weighted_bernoulli",
        "weigh 3 times",
    ),
    "weighted-probabilities": (
        lambda r, x: -summed(0.2 * x * r.log() + (1 - x) * (1 - r).log()),
        "weighted_bernoulli",
        "weigh 0.2 times",
    ),
    "smoothed": (
        lambda r, x: each(bce_with_logits, r, 0.9 * x + 0.05),
        "smoothed_bernoulli",
        "the best output, is 0.9 x + 0.05",
    ),
    "smoothed-on-one-side": (
        lambda r, x: each(bce, r, 0.9 * x),
        "smoothed_bernoulli",
        "best output, is 0.9 x + 0.",
    ),
}


@pytest.mark.parametrize(("recon", "family", "words"), NO_LIKELIHOODS.values(), ids=NO_LIKELIHOODS)
def test_term_that_is_no_likelihood_has_a_name_too(recon, family, words):
    found = diagnose(with_kl(recon))
    assert (found.family, found.is_elbo, found.scale, found.beta) == (family, False, None, None)
    assert words in found.explain()


def test_error_of_rescaled_data_is_gaussian_in_its_own_unit():
    def recon(r, x):
        return 0.5 * summed((r - (2 * x - 1)).square()) / 0.04

    found = diagnose(with_kl(recon), data=torch.rand(20, D, generator=torch.Generator().manual_seed(0)))
    assert (found.family, found.is_elbo, found.num_active) == ("gaussian", True, None)
    assert found.scale == pytest.approx(0.2, rel=1e-6)
    assert "rescales x to 2 x - 1;" in found.explain() and "in the unit of x" not in found.explain()


def test_columns_that_are_read_are_counted():
    def recon(r, x):
        return (r[:, :40] - x[:, :40]).square().sum(1).mean() + (r[:, 40:] - x[:, 40:]).pow(4).sum(1).mean()

    found = diagnose(with_kl(recon))
    assert (found.family, found.is_elbo) == ("unknown", False)
    assert "40 of a Gaussian likelihood with recon_x as its location; the other 8 fit none" in found.explain()


def test_nearest_likelihood_is_named_only_when_it_is_near():
    near = diagnose(with_kl(lambda r, x: summed((r - x).square() + 0.1 * (r - x).pow(4)))).explain()
    assert "The nearest is a Gaussian likelihood" in near
    assert "nearest" not in diagnose(with_kl(lambda r, x: summed((9 * r).sin() * x))).explain()


# ---- the KL term ----


def normal_kl(mu: Tensor, variance: Tensor) -> Tensor:
    return 0.5 * (mu**2 + variance - 1 - variance.log()).sum(1).mean()


MEANINGS = {
    "logvar": torch.exp,
    "log_scale": lambda v: (2 * v).exp(),
    "scale": torch.square,
    "variance": lambda v: v,
    "softplus_scale": lambda v: F.softplus(v).square(),
    "softplus_variance": F.softplus,
    "negative_abs_logvar": lambda v: (-v.abs()).exp(),
}
LAMBDAS = {"log_scale": "0.5 * logvar)", "scale": "(0.5 * logvar).exp())", "variance": "mu, logvar.exp())"}


@pytest.mark.parametrize("constant", [0.0, 1e-10, 1e-8, 1e-6])
@pytest.mark.parametrize("meaning", MEANINGS)
def test_meaning_of_the_fourth_argument_is_found(meaning, constant):
    found = diagnose(with_error(lambda m, v: 0.25 * normal_kl(m, MEANINGS[meaning](v) + constant)))
    assert (found.posterior, found.kl_fault, found.is_elbo) == (meaning, None, True)
    assert found.scale == pytest.approx(0.5, rel=1e-3)
    assert found.verdict.startswith("Your fourth argument is") == (meaning != "logvar")
    assert LAMBDAS.get(meaning, "") in found.explain()


@pytest.mark.parametrize("meaning", LAMBDAS)
def test_lambda_that_is_advised_has_the_usual_form(meaning):
    def loss_fn(recon_x, x, mu, logvar):
        return with_error(lambda m, v: normal_kl(m, MEANINGS[meaning](v)))(recon_x, x, mu, logvar)

    (line,) = (line for line in diagnose(loss_fn).advice if line.startswith("To call it with"))
    usual = eval(line.partition(": ")[2], {"loss_fn": loss_fn})
    found = diagnose(usual)
    assert (found.posterior, found.is_elbo, found.scale) == ("logvar", True, pytest.approx(1))


def test_fixed_posterior_is_a_reading_and_no_fault():
    found = diagnose(with_error(lambda m, v: 0.5 * m.square().sum(1).mean()))
    assert (found.posterior, found.kl_fault, found.is_elbo, found.scale) == (
        "fixed",
        None,
        True,
        pytest.approx(1),
    )


@pytest.mark.parametrize("meaning", ["logvar", "scale", "variance", "fixed"])
def test_posterior_that_is_stated_is_compared(meaning):
    loss_fn = with_error(lambda m, v: normal_kl(m, v.square()))
    found = diagnose(loss_fn, posterior=meaning)
    assert found.is_elbo == (meaning == "scale")
    assert found.kl_fault == (None if meaning == "scale" else f"takes {meaning} for the scale")
    fixed = diagnose(with_error(lambda m, v: 0.5 * m.square().sum(1).mean()), posterior=meaning)
    assert fixed.kl_fault == (None if meaning == "fixed" else "malformed: it ignores logvar")


def draw(m, v, noise=torch.randn_like):
    z = m + (0.5 * v).exp() * noise(m)
    q = distributions.Normal(m, (0.5 * v).exp())
    return (q.log_prob(z) - distributions.Normal(0.0, 1.0).log_prob(z)).sum(1).mean()


def test_single_draw_is_recognised():
    found = diagnose(with_error(draw))
    assert (found.kl_fault, found.posterior, found.is_elbo) == (None, "logvar", True)
    assert (found.kl_weight, found.batch_reduction) == (pytest.approx(1), "mean")
    assert "one draw of z" in found.explain() and "closed form instead" in found.explain()


NOISES = {
    "uniform": (torch.rand_like, "wrong noise", "torch.randn_like(std)"),
    "wide": (lambda m: 1.5 * torch.randn_like(m), "wrong noise", "root mean square 1.5"),
    "absolute": (lambda m: torch.randn_like(m).abs(), "wrong noise", "has mean 0.8"),
    "ones": (torch.ones_like, "always the same", "If you fixed the seed"),
    "seeded": (
        lambda m: torch.randn(m.shape, generator=torch.Generator().manual_seed(3)),
        "always the same",
        "one draw",
    ),
}


@pytest.mark.parametrize(("noise", "fault", "words"), NOISES.values(), ids=NOISES)
def test_draw_must_be_fresh_and_standard_normal(noise, fault, words):
    found = diagnose(with_error(lambda m, v: draw(m, v, noise)))
    assert fault in found.kl_fault and words in found.explain() and not found.is_elbo


def capped(m, v):
    return kl_of(m, v).mean().clamp(max=20)


KL_FAULTS = {  # the term, its fault, words
    "sign": (lambda m, v: -kl_of(m, v).mean(), "wrong sign", "away from the prior"),
    "exchanged": (
        lambda m, v: kl_of(v, m).mean(),
        "mu and logvar are exchanged",
        "Exchange mu and logvar where",
    ),
    "by-latent": (
        lambda m, v: (kl_terms(m, v) * torch.tensor([10.0] * 3 + [1.0] * 3)).sum(1).mean(),
        "its weights differ between the latents",
        "relative to the largest, 0.1 to 1",
    ),
    "prior": (
        lambda m, v: kl_of(2 * m - 1, v + math.log(4)).mean(),
        "another prior",
        "mean 0.5 and standard deviation 0.5",
    ),
    "half-of-one": (
        lambda m, v: (m**2 - 0.5 * (1 + v - v.exp())).sum(1).mean(),
        "different weights",
        "A factor 1/2",
    ),
    "half-of-log-scale": (
        lambda m, v: (0.5 * (m**2 + (2 * v).exp() - 1) - 0.5 * v).sum(1).mean(),
        "another prior",
        "mean 0 and standard deviation 0.7071",
    ),
    "sign-of-log": (
        lambda m, v: 0.5 * (m**2 + v.exp() + v).sum(1).mean(),
        "on logvar",
        "draws the variance to 0",
    ),
    "sign-of-variance": (
        lambda m, v: 0.5 * (m**2 - v.exp() - v).sum(1).mean(),
        "on logvar",
        "grow without bound",
    ),
    "no-log": (lambda m, v: 0.5 * (m**2 + v.exp()).sum(1).mean(), "on logvar", "draws the variance to 0"),
    "no-variance": (lambda m, v: 0.5 * (m**2 - v).sum(1).mean(), "on logvar", "grow without bound"),
    "free-bits": (
        lambda m, v: kl_terms(m, v).clamp(min=0.5).sum(1).mean(),
        "(free bits)",
        "0.5 nats of the KL divergence of each latent are",
    ),
    "free-bits-total": (
        lambda m, v: kl_of(m, v).clamp(min=2).mean(),
        "(free bits)",
        "first 2 nats of the KL divergence of an example, summed over the latents, are",
    ),
    "free-bits-batch": (
        lambda m, v: kl_of(m, v).mean().clamp(min=2),
        "(free bits)",
        ", summed over the latents and averaged over the batch, are",
    ),
    "free-bits-of-means": (
        lambda m, v: kl_terms(m, v).mean(0).clamp(min=0.25).sum(),
        "(free bits)",
        "0.25 nats of the KL divergence of each latent, averaged over the batch, are",
    ),
    "capacity": (lambda m, v: 3 * (kl_of(m, v).mean() - 5).abs(), "(a capacity)", "a capacity of 5 nats"),
    "huge-capacity": (
        lambda m, v: (kl_of(m, v).mean() - 5000).abs(),
        "(a capacity)",
        "a capacity of 5000 nats",
    ),
    "ceiling": (capped, "(a ceiling)", "Above 20 nats"),
    "root": (lambda m, v: kl_of(m, v).mean().sqrt(), "a function of the KL", "a root, a square"),
    "switch": (
        lambda m, v: kl_of(m, v).mean() * float(kl_of(m, v).mean() < 5),
        "a function of the KL",
        "a switch",
    ),
    "clamped": (lambda m, v: kl_of(m, v.clamp(-4, 3)).mean(), "malformed", "it is clamped there"),
    "over-the-batch": (
        lambda m, v: kl_of(m.mean(0, keepdim=True), v.mean(0, keepdim=True)).mean(),
        "malformed",
        "not that of KL(",
    ),
}


@pytest.mark.parametrize(("kl", "fault", "words"), KL_FAULTS.values(), ids=KL_FAULTS)
def test_fault_of_the_kl_has_its_own_sentence(kl, fault, words):
    def loss_fn(recon_x, x, mu, logvar):  # whose names tell that nothing is exchanged
        return with_error(kl)(recon_x, x, mu, logvar)

    found = diagnose(loss_fn)
    assert fault in found.kl_fault and words in found.explain()
    assert (found.is_elbo, found.beta, found.batch_reduction) == (False, None, "unknown")


# ---- parameters that are trained ----


def learned(weight: float, *, is_paid: bool = True, count: int = 1):
    log_scale = nn.Parameter(torch.full((count,), -1.0))

    def loss_fn(r, x, m, v):
        nll = (0.5 * ((r - x) / log_scale.exp()).square() + is_paid * log_scale).sum(1)
        return (nll + weight * kl_of(m, v)).mean()

    return loss_fn, log_scale


@pytest.mark.parametrize("count", [1, D])
@pytest.mark.parametrize("weight", [1.0, 1e-3])
def test_weight_beside_a_learned_scale_is_a_beta(weight, count):
    loss_fn, log_scale = learned(weight, count=count)
    before = log_scale.detach().clone()
    found = diagnose(loss_fn)
    assert found.is_elbo == (weight == 1)
    assert ("beta = 0.001" in found.verdict) == (weight != 1)
    assert "(log_scale)" in found.explain() and "moves during training" in found.explain()
    assert torch.equal(log_scale, before) and log_scale.grad is None


def test_learned_scale_without_its_logarithm_is_no_elbo():
    found = diagnose(learned(1.0, is_paid=False)[0])
    assert not found.is_elbo and "add the logarithm of the scale" in found.explain()


weight, shift = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(K))
MOVING = {  # the loss, whether it is an ELBO, words of the verdict, words of the text
    "weight": (
        lambda r, x, m, v: sse(r, x).mean() + weight * kl_of(m, v).mean(),
        False,
        "the weight of the KL term moves",
        "The weight of the KL term is trained",
    ),
    "prior": (
        lambda r, x, m, v: sse(r, x).mean() + kl_of(m - shift, v).mean(),
        True,
        "This is the negative ELBO",
        "They belong to the prior",
    ),
    "dispersion": (
        with_kl(lambda r, x: -summed(distributions.StudentT(4.0, r, weight).log_prob(x))),
        False,
        "This may cease to be a negative ELBO",
        "whether its normaliser changes with them was not checked",
    ),
    "nothing": (
        lambda r, x, m, v: sse(r, x).mean() + kl_of(m, v).mean() + weight,
        True,
        "This is the negative ELBO",
        "No gradient changes with them",
    ),
}


@pytest.mark.parametrize(("loss_fn", "is_elbo", "verdict", "words"), MOVING.values(), ids=MOVING)
def test_what_moves_with_trained_parameters_is_said(loss_fn, is_elbo, verdict, words):
    found = diagnose(loss_fn)
    assert found.is_elbo == is_elbo
    assert verdict in found.verdict and words in found.explain()
    assert weight.item() == 1 and weight.grad is None and not shift.any()


# ---- how a loss is called ----


def elbo(r, x, m, v):
    return (bce(r, x, reduction="none").sum(1) + kl_of(m, v)).mean()


@dataclass
class Output:
    loss: Tensor


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, target, x_hat, z_mean, z_log_var):
        return elbo(x_hat, target, z_mean, z_log_var)

    def loss(self, inputs, outputs, mu, logvar):
        return elbo(outputs, inputs, mu, logvar)

    @staticmethod
    def criterion(*arguments):
        return elbo(*arguments)


CALLS = {
    "recon-last": lambda mu, logvar, x, recon: elbo(recon, x, mu, logvar),
    "keyword-only": lambda *, recon_x, x, mu, logvar: elbo(recon_x, x, mu, logvar),
    "exchanged-pairs": lambda x, recon, log_var, mu: elbo(recon, x, mu, log_var),
    "unnamed": lambda *tensors: elbo(*tensors),
    "unnamed-x-first": lambda a, b, c, d: elbo(b, a, c, d),
    "unnamed-logvar-first": lambda a, b, c, d: elbo(a, b, d, c),
    "unnamed-all-exchanged": lambda a, b, c, d: elbo(b, a, d, c),
    "defaults": lambda pred, beta=1.0, *, labels, z_mean, z_log_var, weight=None: elbo(
        pred, labels, z_mean, z_log_var
    ),
    "module": Model(),
    "method": Model().loss,
    "static": Model.criterion,
    "partial": functools.partial(lambda beta, r, x, m, v: beta * elbo(r, x, m, v), 2.0),
    "tuple": lambda r, x, m, v: (elbo(r, x, m, v), torch.ones(3), 2.0),
    "dictionary": lambda r, x, m, v: {"kl": kl_of(m, v).mean(), "loss": elbo(r, x, m, v)},
    "dataclass": lambda r, x, m, v: Output(elbo(r, x, m, v)),
    "terms": lambda r, x, m, v: (bce(r, x, reduction="none").sum(1).mean(), kl_of(m, v).mean()),
}


@pytest.mark.parametrize("loss_fn", CALLS.values(), ids=CALLS)
def test_loss_is_called_as_its_arguments_want(loss_fn):
    found = diagnose(loss_fn)
    assert (found.family, found.parameterization, found.posterior) == ("bernoulli", "probabilities", "logvar")
    assert found.is_elbo, found.explain()


def test_output_chooses_what_is_diagnosed():
    def loss_fn(r, x, m, v):
        return {"loss": elbo(r, x, m, v), "total": elbo(r, x, m, v) + 3 * kl_of(m, v).mean()}

    assert diagnose(loss_fn).beta == pytest.approx(1)
    assert diagnose(loss_fn, output="total").beta == pytest.approx(4)
    assert diagnose(lambda *a: tuple(loss_fn(*a).values()), output="1").beta == pytest.approx(4)
    with pytest.raises(ValueError, match="has no item 'sum'; output= takes a key"):
        diagnose(loss_fn, output="sum")
    with pytest.raises(ValueError, match="without a scalar tensor"):
        diagnose(lambda r, x, m, v: (sse(r, x), kl_of(m, v)))


def test_names_that_tell_forbid_to_exchange_prediction_and_target():
    found = diagnose(lambda recon_x, x, mu, logvar: elbo(x, recon_x, mu, logvar))
    assert (found.family, found.is_elbo) == ("unknown", False)
    assert "prediction and target exchanged" in found.explain()


def pair_of_outputs(r, x, m, v):
    mean, scale = r
    return (sse(mean / scale, x / scale) + kl_of(m, v)).mean()


def test_sum_of_products_is_no_accusation():
    found = diagnose(lambda recon_x, x, mu, logvar: kl_of(mu, logvar).mean() - summed(x * recon_x))
    assert (found.family, found.is_elbo) == ("unknown", False)
    assert "With recon_x as log-probabilities, as after log_softmax" in found.explain()


REFUSED = {
    "an-argument-more": (
        lambda r, x, m, v, beta: elbo(r, x, m, v),
        "bind the rest, in a lambda such as lambda",
    ),
    "a-keyword": (lambda *a, **more: elbo(*a) * more["M_N"], "KeyError: 'M_N'"),
    "a-pair-of-outputs": (pair_of_outputs, "your_loss(recon_x.chunk(2, 1), x, mu, logvar)"),
    "jax": (
        lambda r, x, m, v: (_ for _ in ()).throw(TypeError("not a valid JAX type")),
        "this one computes with JAX",
    ),
    "noise": (
        lambda r, x, m, v: elbo(r, x, m, v) + torch.rand(()) * sse(r, x).mean(),
        "If it estimates the KL term",
    ),
}


@pytest.mark.parametrize(("loss_fn", "message"), REFUSED.values(), ids=REFUSED)
def test_loss_that_cannot_be_called_is_told_the_way_out(loss_fn, message):
    with pytest.raises(ValueError) as caught:
        diagnose(loss_fn)
    assert message in str(caught.value)


def test_tensors_that_a_loss_holds_say_on_which_device_it_is_called():
    weights = torch.ones(3, device="meta")
    module = nn.Linear(2, 2, device="meta")

    def inner(r):
        return r * weights

    for held in (inner, functools.partial(inner), lambda r: inner(r), module.forward, lambda r: module(r)):
        assert find_device(held).type == "meta"
    assert find_device(elbo).type == "cpu"


@pytest.mark.parametrize("posterior", ["sigma", 1])
def test_meaning_that_is_none_is_refused(posterior):
    with pytest.raises(
        ValueError, match="posterior must be one of logvar, log_scale, scale, variance, fixed"
    ):
        diagnose(elbo, posterior=posterior)


# ---- losses that are no negative ELBO ----


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def predicted(term):
    """Decoder that predicts mean and a raw spread; x is as wide as the mean."""
    return with_kl(lambda r, x: summed(term(r[:, :D], r[:, D:], x)))


def softplus_kl(mu, v):
    return 0.5 * (mu**2 + F.softplus(v) ** 2 - 1) - F.softplus(v).log()


s1, l0, many = parameter(1.0), parameter(0.0), parameter(*(0.1 * i for i in range(D)))
NO_ELBOS = {
    # reconstruction terms
    "fourth-power": with_kl(lambda r, x: summed((r - x).pow(4))),
    "power-one-and-a-half": with_kl(lambda r, x: summed((r - x).abs().pow(1.5))),
    "clipped-prediction": with_kl(lambda r, x: sse(r.clamp(0, 1), x).mean()),
    "clipped-far-away": with_kl(lambda r, x: sse(r.clamp(-5, 5), x).mean()),
    "clipped-error": with_kl(lambda r, x: summed((r - x).square().clamp(max=0.5))),
    "dead-zone": with_kl(lambda r, x: summed(F.relu((r - x).abs() - 0.1).square())),
    "huber": with_kl(lambda r, x: each(F.huber_loss, r, x, delta=9.0)),
    "mixed-huber": with_kl(
        lambda r, x: each(F.smooth_l1_loss, r[:, :9], x[:, :9]) + each(bce_with_logits, r[:, 9:], x[:, 9:])
    ),
    "mixed-beta": with_kl(
        lambda r, x: sse(r[:, :9], x[:, :9]).mean() + 2 * each(bce_with_logits, r[:, 9:], x[:, 9:])
    ),
    "mixed-capped": with_kl(
        lambda r, x: (
            summed(bce_with_logits(r[:, :40], x[:, :40], reduction="none").clamp(max=5))
            + F.cross_entropy(r[:, 40:], x[:, 40:])
        )
    ),
    "mixed-unknown": with_kl(
        lambda r, x: sse(r[:, :40], x[:, :40]).mean() + summed((r[:, 40:] - x[:, 40:]).pow(4))
    ),
    "ink-weighted": with_kl(lambda r, x: summed((r - x).square() * (1 + 9 * x))),
    "weighted-by-prediction": with_kl(lambda r, x: summed((r - x).square() * (1 + r.detach()))),
    "zeros-left-out": with_kl(lambda r, x: summed((r - x).square() * (x != 0))),
    "normalised-by-batch": with_kl(lambda r, x: sse(r, x).mean() / x.var()),
    "normalised-by-error": with_kl(lambda r, x: (sse(r, x) / sse(r, x).detach().sqrt()).mean()),
    "root": with_kl(lambda r, x: sse(r, x).sqrt().mean()),
    "log-of-examples": with_kl(lambda r, x: sse(r, x).log().mean()),
    "log-of-batch": with_kl(lambda r, x: mse_loss(r, x).log()),
    "batch-means": with_kl(lambda r, x: sse(r.mean(0, keepdim=True), x.mean(0, keepdim=True)).mean()),
    "every-pair": with_kl(lambda r, x: (r[:, None] - x[None]).square().sum(-1).mean()),
    "total-variation-too": with_kl(lambda r, x: sse(r, x).mean() + 0.1 * r.diff(dim=1).abs().mean()),
    "cosine": with_kl(lambda r, x: -F.cosine_similarity(r, x).mean()),
    "semi-definite": with_kl(lambda r, x: ((r - x) @ torch.ones(D, 3).double()).square().mean()),
    "half-an-entropy": with_kl(lambda r, x: -summed(x * r.log())),
    "focal": with_kl(lambda r, x: summed((1 - r).square() * bce(r, x, reduction="none"))),
    "entropy-of-rounded": with_kl(lambda r, x: each(bce, r, (x > 0.3).to(x))),
    "entropy-and-error": with_kl(lambda r, x: each(bce, r, x) + sse(r, x).mean()),
    "weighted-entropy": with_kl(lambda r, x: summed(bce(r, x, reduction="none") * WEIGHTS)),
    "pos-weight": with_kl(lambda r, x: each(bce_with_logits, r, x, pos_weight=torch.tensor(1.01))),
    "smoothed": with_kl(lambda r, x: each(bce_with_logits, r, 0.99 * x + 0.005)),
    "balanced": with_kl(lambda r, x: -(r[x > 0.5].log().mean() + (1 - r[x <= 0.5]).log().mean())),
    "tempered-softmax": with_kl(lambda r, x: tokens(2 * r, x)),
    "mean-over-tokens": with_kl(lambda r, x: tokens(r, x) / 12),
    "mean-entropy": with_kl(lambda r, x: bce(r, x)),
    "mean-counts": with_kl(lambda r, x: F.poisson_nll_loss(r, x)),
    "rate-without-its-sum": with_kl(lambda r, x: -summed(x * r.log()) + 0.5 * summed(r)),
    "exchanged": with_kl(lambda r, x: each(bce, x.clamp(0.01, 0.99), r)),
    "log-likelihood": with_kl(lambda r, x: -sse(r, x).mean()),
    "predicted-scale-unpaid": with_kl(
        lambda r, x: summed((r[:, :24] - x[:, :24]).square() / r[:, 24:].exp())
    ),
    "predicted-scale-half-paid": with_kl(
        lambda r, x: summed((r[:, :24] - x[:, :24]).square() / r[:, 24:].exp() + 0.5 * r[:, 24:])
    ),
    "predicted-scale-mean": with_kl(lambda r, x: F.gaussian_nll_loss(r[:, :24], x[:, :24], r[:, 24:])),
    "perceptual": with_kl(lambda r, x: sse((r @ ROOT).tanh(), (x @ ROOT).tanh()).mean()),
    "cauchy-too-heavy": lambda r, x, m, v: summed((r - x).square().log1p()) + 3 * kl_of(m, v).mean(),
    # KL terms
    **{f"kl-{name}": with_error(row[0]) for name, row in KL_FAULTS.items()},
    "kl-missing": with_error(lambda m, v: torch.zeros(())),
    "kl-detached-mean": with_error(lambda m, v: kl_of(m.detach(), v).mean()),
    "kl-detached-variance": lambda r, x, m, v: 0.5 * sse(r, x).mean() + kl_of(m, v).mean() + 0.001 * v.sum(),
    "kl-of-some": with_error(lambda m, v: kl_of(m[:, :3], v[:, :3]).mean()),
    "kl-of-first": with_error(lambda m, v: kl_of(m[:1], v[:1]).mean()),
    "kl-squared": with_error(lambda m, v: kl_of(m, v).square().mean()),
    "kl-and-l1": with_error(lambda m, v: kl_of(m, v).mean() + 1e-2 * m.abs().mean()),
    "kl-and-covariance": with_error(
        lambda m, v: kl_of(m, v).mean() + (m.T @ m / len(m)).fill_diagonal_(0).square().sum()
    ),
    "kl-reversed": with_error(lambda m, v: 0.5 * ((1 + m**2) / v.exp() - 1 + v).sum(1).mean()),
    "kl-by-example": with_error(lambda m, v: (kl_of(m, v) * torch.linspace(0, 1, 8)).mean()),
    "kl-weighted-by-x": lambda r, x, m, v: sse(r, x).mean() + (kl_of(m, v) * x.mean(1)).mean(),
    "kl-weighted-by-error": lambda r, x, m, v: sse(r, x).mean() + (kl_of(m, v) * sse(r, x)).mean(),
    "beta-entropy": lambda r, x, m, v: each(bce, r, x) + 1.01 * kl_of(m, v).mean(),
    "sum-beside-mean": lambda r, x, m, v: bce(r, x, reduction="sum") / 8 + kl_of(m, v).mean(),
    "larger-of-both": lambda r, x, m, v: torch.maximum(sse(r, x), kl_of(m, v)).mean(),
    "product": lambda r, x, m, v: sse(r, x).mean() * kl_of(m, v).mean(),
    "maximum-mean-discrepancy": with_error(
        lambda m, v: (m.mean(0).square() + (m.var(0) - 1).square()).sum() + 0 * v.sum()
    ),
    "first-example-only": lambda r, x, m, v: sse(r, x)[0] + kl_of(m, v).mean(),
    "value-detached": with_kl(lambda r, x: D / 2 * mse_loss(r, x) / mse_loss(r, x).detach()),
    "tolerance": with_kl(lambda r, x: F.relu(sse(r, x).mean() - 0.5)),
    "capped-entropy": with_kl(lambda r, x: summed(bce_with_logits(r, x, reduction="none").clamp(max=5))),
    "capped-symmetric": with_kl(
        lambda r, x: summed(bce((r + 1) / 2, (x + 1) / 2, reduction="none").clamp(max=2))
    ),
    "masked-half-entropy": with_kl(lambda r, x: -summed(x * r.log() * WEIGHTS.round())),
    "welsch": with_kl(lambda r, x: summed(1 - (-8 * (r - x).square()).exp())),
    "tukey": with_kl(lambda r, x: summed(1 - (1 - (r - x).square().clamp(max=1)) ** 3)),
    "predicted-huber": predicted(lambda m, s, x: F.huber_loss(m, x, reduction="none") / s.exp() + 0.5 * s),
    "predicted-relu": predicted(lambda m, s, x: 0.5 * ((m - x) ** 2 / s.exp() + s.relu())),
    "predicted-clamp": predicted(lambda m, s, x: 0.5 * ((m - x) ** 2 / s.exp() + s.clamp(-1, 1))),
    "predicted-capped": predicted(lambda m, s, x: 0.5 * ((m - x) ** 2 / s.exp()).clamp(max=2) + 0.5 * s),
    "kl-high-ceiling": with_error(lambda m, v: kl_of(m, v).clamp(max=1000).mean()),
    "kl-huber": with_error(
        lambda m, v: kl_of(0 * m, v).mean() + summed(F.huber_loss(m, 0 * m, delta=12.0, reduction="none"))
    ),
    "kl-softplus-ceiling": with_error(lambda m, v: summed(softplus_kl(m, v).clamp(max=10))),
    "kl-softplus-and-more": with_error(lambda m, v: summed(softplus_kl(m, v) + F.relu(m.abs() - 5))),
    "kl-scale-clamped": with_error(lambda m, v: kl_of(m, 2 * v.clamp(min=0.15).log()).mean()),
    "kl-variance-clamped": with_error(lambda m, v: kl_of(m, v.clamp(0.1, 10).log()).mean()),
    "kl-detached": with_error(lambda m, v: kl_of(m, v.detach()).mean()),
    "kl-weight-even": lambda r, x, m, v: sse(r, x).mean() + (1 + l0**2).sum() * kl_of(m, v).mean(),
    "kl-part-trained": with_error(lambda m, v: 0.5 * (m**2 + s1 * v.exp() - 1 - v).sum(1).mean()),
    "learned-scale-linear": with_kl(lambda r, x: 0.5 * sse(r, x).mean() / s1.square().sum() + D * s1.sum()),
    "learned-scale-log1p": with_kl(
        lambda r, x: 0.5 * sse(r, x).mean() / s1.square().sum() + D * (1 + s1**2).log().sum()
    ),
    "learned-scale-even": with_kl(lambda r, x: sse(r, x).mean() * l0.cosh().sum()),
    "learned-scales-of-the-mean": with_kl(
        lambda r, x: 0.5 * summed((r - x).square() / (2 * many).exp()) + D * many.exp().mean().log()
    ),
    "learned-scales-of-the-first": with_kl(
        lambda r, x: 0.5 * summed((r - x).square() / (2 * many).exp()) + D * many[0]
    ),
    "learned-scale-small-weight": learned(1e-3)[0],
    "learned-scale-unpaid": learned(1.0, is_paid=False)[0],
    "learned-scales-unpaid": learned(1.0, is_paid=False, count=D)[0],
}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("loss_fn", NO_ELBOS.values(), ids=NO_ELBOS)
def test_loss_that_is_no_elbo_is_never_called_one(loss_fn, seed):
    def named(recon_x, x, mu, logvar):
        return loss_fn(recon_x, x, mu, logvar)

    found = diagnose(named, seed=seed)
    assert not found.is_elbo, found.explain()
    assert not found.verdict.startswith("This is the negative ELBO")


@pytest.mark.parametrize("kl", ["clamp", "capacity"])
def test_small_allowance_of_many_latents_is_seen(kl):
    def loss_fn(r, x, mu, logvar):
        size = kl_of(mu, logvar).mean()
        return sse(r, x).mean() + (size.clamp(min=0.5) if kl == "clamp" else (size - 0.5).abs())

    found = diagnose(loss_fn, latent_dim=512)
    assert not found.is_elbo and "0.5 nats" in found.explain()


# ---- what a diagnosis leaves as it was ----


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D, affine=False)

    def forward(self, recon_x, x, mu, logvar):
        return sse(self.norm(recon_x.float()), self.norm(x.float())).mean() + kl_of(mu, logvar).mean()


def test_layers_of_a_loss_are_left_as_they_were():
    module = Normalised()
    assert diagnose(module).family == "unknown"
    assert module.norm.num_batches_tracked == 0 and bool((module.norm.running_mean == 0).all())


class Hostile:
    def __getattr__(self, name):
        raise RuntimeError(name)


def beside_a_hostile_object():
    hostile = Hostile()
    return lambda r, x, m, v: (hostile, elbo(r, x, m, v))[1]


def unassigned():
    def loss_fn(recon_x, x, mu, logvar):
        return elbo(recon_x, x, mu, logvar) if len(x) else later

    if D < 0:
        later = None
    return loss_fn


ODD = {
    "array-beside-the-loss": lambda r, x, m, v: (elbo(r, x, m, v), r.detach().numpy()),
    "name-without-value": unassigned(),
    "hostile-object": beside_a_hostile_object(),
}


@pytest.mark.parametrize("loss_fn", ODD.values(), ids=ODD)
def test_odd_surroundings_do_not_disturb(loss_fn):
    assert diagnose(loss_fn).is_elbo


def test_sizes_may_be_integers_of_numpy():
    assert diagnose(elbo, data_dim=np.int64(5)).is_elbo
    with pytest.raises(ValueError, match="seed must be an integer"):
        diagnose(elbo, seed=True)
