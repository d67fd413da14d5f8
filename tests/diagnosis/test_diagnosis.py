"""Losses as they are found, and what they turn out to assume."""

import math
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor, distributions, nn
from torch.nn import functional as F
from torch.nn.functional import binary_cross_entropy as bce
from torch.nn.functional import binary_cross_entropy_with_logits as bce_with_logits
from torch.nn.functional import l1_loss, mse_loss

from vaecourse.cli import main
from vaecourse.densities import bernoulli_nll, gaussian_nll, laplace_nll
from vaecourse.diagnosis import LossDiagnosis, diagnose_loss
from vaecourse.diagnosis.probing import LossFn
from vaecourse.objectives import implied_variance, kl_weight_for

D, K = 784, 20


def kl_terms(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (1 + logvar - mu.square() - logvar.exp())


def kl_sum(mu: Tensor, logvar: Tensor) -> Tensor:
    return kl_terms(mu, logvar).sum(1)


def kl_mean(mu: Tensor, logvar: Tensor) -> Tensor:
    return kl_sum(mu, logvar).mean()


def sse(r: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (r - x).square().sum(1).mean()


def half_sse(r, x, mu, logvar):
    return (0.5 * (r - x).square().sum(1) + kl_sum(mu, logvar)).mean()


def diagnose(loss_fn: LossFn, **settings) -> LossDiagnosis:
    return diagnose_loss(loss_fn, **{"data_dim": D, "latent_dim": K, **settings})


def of_size(data_dim: int, latent_dim: int, batch_size: int = 8) -> dict[str, int]:
    return {"data_dim": data_dim, "latent_dim": latent_dim, "batch_size": batch_size}


def seeds(count: int) -> pytest.MarkDecorator:
    more = [pytest.param(seed, marks=pytest.mark.long) for seed in range(1, count)]
    return pytest.mark.parametrize("seed", [0, *more])


# --- the losses of well-known code, in our own words -----------------------------------------------------

SIZES_28, SIZES_32 = of_size(3 * 28 * 28, 16, 128), of_size(3 * 32 * 32, 256)
SIZES_64 = of_size(3 * 64 * 64, 128)
WILD = {  # by family and parameterisation: the loss, its beta, and the sizes that it was found with
    ("gaussian", "loc"): {
        "half-sse": (half_sse, 1.0, {}),
        "sse": (lambda r, x, m, v: ((r - x).square().sum(1) + kl_sum(m, v)).mean(), 0.5, {}),
        "tenth-of-mean-kl": (lambda r, x, m, v: mse_loss(r, x) + 0.1 * kl_terms(m, v).mean(), 0.6, SIZES_32),
        "small-kl": (lambda r, x, m, v: mse_loss(r, x) + 2.5e-4 * kl_mean(m, v), 1.536, SIZES_64),
        "its-validation": (lambda r, x, m, v: mse_loss(r, x) + kl_mean(m, v), 6144.0, SIZES_64),
        "both-means": (lambda r, x, m, v: mse_loss(r, x) + kl_terms(m, v).mean(), 19.6, {}),
        "mean-error": (lambda r, x, m, v: mse_loss(r, x) + kl_mean(m, v), 392.0, {}),
        "kl-summed": (lambda r, x, m, v: mse_loss(r, x) + kl_terms(m, v).sum(), 150_528.0, SIZES_28),
    },
    ("bernoulli", "probabilities"): {
        "both-means": (lambda r, x, m, v: bce(r, x) + kl_terms(m, v).mean(), 3.92, {"latent_dim": 200}),
        "mean-kl": (lambda r, x, m, v: bce(r, x) * D + kl_terms(m, v).mean(), 0.5, {"latent_dim": 2}),
        "both-summed": (lambda r, x, m, v: bce(r, x, reduction="sum") + kl_terms(m, v).sum(), 1.0, {}),
        "both-divided": (lambda r, x, m, v: bce(r, x) + kl_terms(m, v).sum() / (len(x) * D), 1.0, {}),
    },
    ("laplace", "loc"): {
        "small-kl": (lambda r, x, m, v: l1_loss(r, x) + 5e-4 * kl_mean(m, v), 6.144, SIZES_64),
    },
}


def rows(table: dict) -> list:
    return [
        pytest.param(form, *row, id="-".join([*form, name]))
        for form, named_rows in table.items()
        for name, row in named_rows.items()
    ]


def check(found: LossDiagnosis, form: tuple[str, str], beta: float, *, rel: float) -> None:
    assert (found.family, found.parameterization, found.kl_fault) == (*form, None)
    assert found.beta == pytest.approx(beta, rel=rel)
    scale = {"gaussian": math.sqrt(beta), "laplace": beta}.get(found.family)
    assert found.scale == (scale and pytest.approx(scale, rel=rel))
    assert found.is_elbo == (found.family != "bernoulli" or beta == 1)


@pytest.mark.parametrize(("form", "loss_fn", "beta", "sizes"), rows(WILD))
def test_loss_in_the_wild_is_read(form, loss_fn, beta, sizes):
    check(diagnose(loss_fn, **sizes), form, beta, rel=1e-6)


# --- the same losses, written otherwise ------------------------------------------------------------------


def with_distributions(r, x, mu, logvar):
    q = distributions.Normal(mu, (0.5 * logvar).exp())
    kl = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1)
    return (kl - distributions.Normal(r, 0.2).log_prob(x).sum(1)).mean()


def with_loops(r, x, mu, logvar):
    total = 0.0
    for i in range(len(x)):
        total = total + (r[i] - x[i]) @ (r[i] - x[i]) + kl_terms(mu[i], logvar[i]).sum()
    return total / len(x)


def in_float32(r, x, mu, logvar):
    r, x, mu, logvar = (t.float() for t in (r, x, mu, logvar))
    return mse_loss(r, x) + kl_mean(mu, logvar)


def for_float32_only(r, x, mu, logvar):
    weight = torch.ones(x.shape[1])  # float32, as torch makes it
    return ((r - x).square() @ weight + kl_sum(mu, logvar)).mean()


def from_log_probabilities(r, x, mu, logvar):
    log_likelihood = (x * (r + 1e-8).log() + (1 - x) * (1 - r + 1e-8).log()).sum(1)
    return -(log_likelihood - kl_sum(mu, logvar)).mean()


def from_unvalidated_distribution(r, x, mu, logvar):
    q = distributions.Bernoulli(r, validate_args=False)  # grey levels are refused otherwise
    return (kl_sum(mu, logvar) - q.log_prob(x).sum(1)).mean()


def package_bernoulli(r, x, mu, logvar):
    return (bernoulli_nll(x, r) + kl_sum(mu, logvar)).mean()


VARIANTS = {  # by family and parameterisation: the loss and its beta
    ("gaussian", "loc"): {
        "distributions": (with_distributions, 0.04),
        "loops": (with_loops, 0.5),
        "other-order": (lambda r, x, m, v: kl_terms(m, v).sum() + mse_loss(x, r, reduction="sum"), 0.5),
        "float32-inside": (in_float32, 392.0),
        "float32-only": (for_float32_only, 0.5),
        "scaled": (lambda *a: 1000 * half_sse(*a), 1.0),
        "shrunk": (lambda *a: 1e-6 * half_sse(*a), 1.0),
        "shifted": (lambda *a: half_sse(*a) + 720.4, 1.0),
        "shifted-by-the-data": (lambda r, x, m, v: half_sse(r, x, m, v) - x.sum(), 1.0),
        "minus-one-left-out": (lambda r, x, m, v: sse(r, x) + 0.5 * (m**2 + v.exp() - v).sum(1).mean(), 1.0),
        "kl-without-half": (lambda r, x, m, v: sse(r, x) + 2 * kl_mean(m, v), 2.0),
        "all-summed": (lambda r, x, m, v: len(x) * half_sse(r, x, m, v), 1.0),
        "in-grey-levels": (lambda r, x, m, v: sse(255 * r, 255 * x) + kl_mean(m, v), 1 / 255**2),
        "norm-squared": (lambda r, x, m, v: ((r - x).norm(dim=1) ** 2 + kl_sum(m, v)).mean(), 0.5),
        "package": (lambda r, x, m, v: (gaussian_nll(x, r, 0.1) + kl_sum(m, v)).mean(), 0.01),
        "torch": (
            lambda r, x, m, v: F.gaussian_nll_loss(r, x, torch.full_like(r, 0.25)) * D + kl_mean(m, v),
            0.25,
        ),
    },
    ("gaussian", "logits"): {"sigmoid": (lambda r, x, m, v: mse_loss(r.sigmoid(), x) + kl_mean(m, v), 392.0)},
    ("laplace", "loc"): {
        "absolute-error": (lambda r, x, m, v: ((r - x).abs().sum(1) + kl_sum(m, v)).mean(), 1.0),
        "package": (lambda r, x, m, v: (laplace_nll(x, r, 0.3) + kl_sum(m, v)).mean(), 0.3),
    },
    ("laplace", "logits"): {"sigmoid": (lambda r, x, m, v: l1_loss(r.sigmoid(), x) + kl_mean(m, v), 784.0)},
    ("bernoulli", "logits"): {
        "bce-with-logits": (lambda r, x, m, v: bce_with_logits(r, x) * D + kl_mean(m, v), 1.0),
        "sigmoid-then-bce": (lambda r, x, m, v: bce(r.sigmoid(), x) + kl_mean(m, v) / D, 1.0),
        "softplus": (lambda r, x, m, v: ((F.softplus(r) - x * r).sum(1) + 4 * kl_sum(m, v)).mean(), 4.0),
        "package": (package_bernoulli, 1.0),
    },
    ("bernoulli", "probabilities"): {
        "distribution": (from_unvalidated_distribution, 1.0),
        "logs-with-a-small-constant": (from_log_probabilities, 1.0),
    },
}


@pytest.mark.parametrize(("form", "loss_fn", "beta"), rows(VARIANTS))
def test_variants_are_read_alike(form, loss_fn, beta):
    check(diagnose(loss_fn), form, beta, rel=1e-4)


@seeds(5)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 1), (64, 10, 7), (784, 2, 100)], ids=str)
def test_diagnosis_does_not_depend_on_seed_or_sizes(seed, size):
    assert diagnose(in_float32, **of_size(*size), seed=seed).beta == pytest.approx(size[0] / 2, rel=1e-4)
    found = diagnose(package_bernoulli, **of_size(*size), seed=seed)
    assert (found.family, found.is_elbo, found.batch_reduction) == ("bernoulli", True, "mean")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_diagnosis_works_where_gradients_are_off(mode):
    with mode():
        assert diagnose(half_sse).is_elbo


@seeds(20)
def test_tiny_sizes_do_not_fit_by_chance(seed):
    def loss_fn(r, x, m, v):
        return F.smooth_l1_loss(r, x, beta=0.1) + kl_terms(m, v).clamp(min=0.1).sum()

    found = diagnose(loss_fn, **of_size(2, 1, 1), seed=seed)
    assert found.family == "huber" and found.kl_fault is not None


def test_diagnosis_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    diagnose(half_sse)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- weights and reductions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss_fn", "reduction"),
    [
        (half_sse, "mean"),
        (lambda r, x, m, v: mse_loss(r, x, reduction="sum") + kl_terms(m, v).sum(), "sum"),
        (WILD["gaussian", "loc"]["kl-summed"][0], "mean of the reconstruction term, sum of the KL term"),
        (lambda *a: half_sse(*a) / len(a[0]), "reduction with the factor 0.25 for a batch of twice the size"),
    ],
    ids=["mean", "sum", "mixed", "neither"],
)
def test_batch_reduction_is_named(loss_fn, reduction):
    assert diagnose(loss_fn).batch_reduction == reduction


@pytest.mark.parametrize("batch_size", [2, 16])
def test_weights_are_per_example(batch_size):
    mean = diagnose(WILD["gaussian", "loc"]["both-means"][0], batch_size=batch_size)
    assert (mean.recon_weight, mean.kl_weight) == (pytest.approx(1 / D), pytest.approx(1 / K))
    total = diagnose(WILD["bernoulli", "probabilities"]["both-summed"][0], batch_size=batch_size)
    assert (total.recon_weight, total.kl_weight) == (pytest.approx(1), pytest.approx(1))
    assert implied_variance(mean.recon_weight, mean.kl_weight) == pytest.approx(mean.scale**2)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("mean-error", "weight 0.00127551 (a mean over its 784 numbers)"),
        ("both-means", "weight 0.05 (a mean over its 20 latents)"),
        ("sse", "squared error has the weight 1 (a sum over the example)"),
    ],
)
def test_likely_causes_of_weights_are_named(row, sentence):
    assert sentence in diagnose(WILD["gaussian", "loc"][row][0]).explain()


def test_a_missing_half_of_the_kl_is_suspected():
    found = diagnose(lambda r, x, m, v: sse(r, x) + 2 * kl_mean(m, v))
    assert "weight 2 (perhaps a missing 1/2)" in found.explain()


# --- losses that fit nothing -----------------------------------------------------------------------------


def perceptual(r, x):
    features = torch.randn(D, 50, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    return mse_loss((r @ features).tanh(), (x @ features).tanh())


UNKNOWN = {
    "clipped": (lambda r, x: mse_loss(r.clamp(0, 1), x), "changes its form for large errors"),
    "root-mean-squared-error": (lambda r, x: mse_loss(r, x).sqrt(), "a factor that changes with the size"),
    "squared-and-absolute": (lambda r, x: mse_loss(r, x) + l1_loss(r, x), "of none that I know by name"),
    "charbonnier": (lambda r, x: ((r - x).square() + 1e-2).sqrt().mean(), "of none that I know by name"),
    "cosine": (lambda r, x: -F.cosine_similarity(r, x).mean(), "fits no likelihood that I know"),
    "exchanged": (lambda r, x: bce(x, r), "prediction and target exchanged"),
    "log-likelihood": (lambda r, x: -mse_loss(r, x), "not its negative"),
    "perceptual": (perceptual, "fits no likelihood that I know"),
}


@pytest.mark.parametrize(("recon", "sentence"), UNKNOWN.values(), ids=UNKNOWN)
def test_reconstruction_terms_that_fit_nothing_are_unknown(recon, sentence):
    found = diagnose(lambda r, x, m, v: recon(r, x) + kl_mean(m, v))
    assert (found.family, found.parameterization, found.is_elbo) == ("unknown", None, False)
    assert (found.scale, found.beta, found.recon_weight) == (None, None, None)
    assert found.kl_fault is None
    assert found.explain().startswith("This is not a negative ELBO") and sentence in found.explain()


def test_terms_that_do_not_add_are_unknown():
    found = diagnose(lambda r, x, m, v: mse_loss(r, x) * (1 + kl_mean(m, v)))
    assert found.family == "unknown"
    assert found.kl_fault is not None


KL_FAULTS = {
    "missing": (lambda m, v: torch.zeros(()), "missing"),
    "wrong-sign": (lambda m, v: -kl_mean(m, v), "wrong sign"),
    "no-mean": (lambda m, v: -0.5 * (1 + v - v.exp()).sum(1).mean(), "ignores mu"),
    "lost-half": (lambda m, v: (m**2 - 0.5 * (1 + v - v.exp())).sum(1).mean(), "different weights"),
    "no-logarithm": (lambda m, v: 0.5 * (m**2 + v.exp() - 1).sum(1).mean(), "wrong dependence on logvar"),
    "absolute-mean": (lambda m, v: (m.abs() - 0.5 * (1 + v - v.exp())).sum(1).mean(), "dependence on mu"),
    "free-bits": (lambda m, v: kl_terms(m, v).clamp(min=0.5).mean(), "wrong dependence on mu and logvar"),
    "squared": (lambda m, v: kl_sum(m, v).square().mean(), "wrong dependence on mu and logvar"),
}


@pytest.mark.parametrize(("kl", "fault"), KL_FAULTS.values(), ids=KL_FAULTS)
def test_kl_faults_are_named_and_leave_the_family(kl, fault):
    found = diagnose(lambda r, x, m, v: sse(r, x) + kl(m, v))
    assert fault in found.kl_fault
    assert (found.family, found.parameterization) == ("gaussian", "loc")
    assert (found.scale, found.beta, found.is_elbo, found.kl_weight) == (None, None, False, None)
    assert found.kl_fault in found.explain()


CHANGING_KL = {
    "capacity": lambda m, v: (kl_mean(m, v) - 5).abs(),
    "large-capacity": lambda m, v: (kl_mean(m, v) - 25).abs(),
    "free-bits-in-all": lambda m, v: kl_sum(m, v).clamp(min=2).mean(),
    "free-bits-of-means": lambda m, v: kl_terms(m, v).mean(0).clamp(min=0.25).sum(),
    "clamped-logvar": lambda m, v: kl_sum(m, v.clamp(-4, 3)).mean(),
    "clamped-mu": lambda m, v: kl_sum(m.clamp(-3, 3), v).mean(),
    "ceiling": lambda m, v: kl_sum(m, v).clamp(max=20).mean(),
    "root": lambda m, v: kl_mean(m, v).sqrt(),
    "of-the-mean": lambda m, v: kl_sum(m.mean(0, keepdim=True), v.mean(0, keepdim=True)).mean(),
    "of-the-first": lambda m, v: kl_sum(m[:1], v[:1]).mean(),
    "other-prior": lambda m, v: 0.5 * (m**2 / 4 + v.exp() / 4 - v).sum(1).mean(),
}


@pytest.mark.parametrize("size", [(784, 20, 8), (8, 2, 1), (16, 64, 4)], ids=str)
@seeds(3)
@pytest.mark.parametrize("kl", CHANGING_KL.values(), ids=CHANGING_KL)
def test_kl_that_is_one_only_somewhere_is_no_kl(kl, size, seed):
    found = diagnose(lambda r, x, m, v: sse(r, x) + kl(m, v), **of_size(*size), seed=seed)
    assert found.family == "gaussian" and not found.is_elbo
    assert found.kl_fault.startswith("malformed")


PARTIAL_RECONSTRUCTIONS = {
    "ink-only": lambda r, x: ((r - x).square() * (x > 0)).sum(1).mean(),
    "ink-weighted": lambda r, x: ((r - x).square() * (1 + 9 * (x > 0))).sum(1).mean(),
    "full-ink-weighted": lambda r, x: ((r - x).square() * torch.where(x == 1, 10.0, 1.0)).sum(1).mean(),
    "masked-entropy": lambda r, x: (bce(r, x, reduction="none") * (x != 0)).sum(1).mean(),
    "every-pair": lambda r, x: (r[:, None] - x[None]).square().sum(-1).mean(),
    "batch-means": lambda r, x: (r.mean(0) - x.mean(0)).square().sum(),
    "target-rounded-in-place": lambda r, x: (r - x.round_()).square().sum(1).mean(),
}


@pytest.mark.parametrize("batch_size", [1, 8])
@seeds(3)
@pytest.mark.parametrize("recon", PARTIAL_RECONSTRUCTIONS.values(), ids=PARTIAL_RECONSTRUCTIONS)
def test_reconstruction_that_is_a_likelihood_only_somewhere_is_unknown(recon, batch_size, seed):
    size = of_size(64, 4, batch_size)
    found = diagnose(lambda r, x, m, v: recon(r, x) + kl_mean(m, v), **size, seed=seed)
    assert (found.family, found.is_elbo) == ("unknown", False)


def clamped_in_place(r, x, mu, logvar):
    error = bce(r.clamp_(1e-6, 1 - 1e-6), x, reduction="none").sum(1)
    return (error + kl_sum(mu, logvar.clamp_(-10, 10))).mean()


def with_gradient_penalty_of_zero(r, x, mu, logvar):
    loss = half_sse(r, x, mu, logvar)
    (slope,) = torch.autograd.grad(loss, r, create_graph=True)
    return loss + 0 * slope.sum()


def from_validated_distribution(r, x, mu, logvar):
    log_likelihood = distributions.Bernoulli(logits=r).log_prob(x).sum(1)  # refuses grey levels
    return (kl_sum(mu, logvar) - log_likelihood).mean()


def sigmoid_in_float32(r, x, mu, logvar):
    p = r.float().sigmoid()
    return bce(p, x.float(), reduction="sum") / len(x) + kl_mean(mu, logvar)


def clamped_sigmoid(r, x, mu, logvar):
    p = r.sigmoid().clamp(1e-6, 1 - 1e-6)
    return (bce(p, x, reduction="none").sum(1) + kl_sum(mu, logvar)).mean()


@seeds(3)
@pytest.mark.parametrize(
    ("loss_fn", "family", "parameterization"),
    [
        (clamped_in_place, "bernoulli", "probabilities"),
        (with_gradient_penalty_of_zero, "gaussian", "loc"),
        (from_validated_distribution, "bernoulli", "logits"),
        (sigmoid_in_float32, "bernoulli", "logits"),
        (clamped_sigmoid, "bernoulli", "logits"),
    ],
)
def test_habits_of_training_code_do_not_disturb(loss_fn, family, parameterization, seed):
    found = diagnose(loss_fn, seed=seed)
    check(found, (family, parameterization), 1.0, rel=1e-3)


def test_small_reconstruction_beside_a_large_kl_is_no_ignored_argument():
    found = diagnose(lambda r, x, m, v: (1e-6 * sse(r, x) + 1e4 * kl_mean(m, v)).float())
    assert found.family == "gaussian" and found.beta == pytest.approx(1e10, rel=1e-3)


def test_loss_for_one_batch_size_is_read_without_its_reduction():
    found = diagnose(lambda r, *rest: half_sse(r.view(8, D), *rest), batch_size=8)
    assert (found.family, found.batch_reduction) == ("gaussian", "unknown")
    assert found.recon_weight is None and found.scale == pytest.approx(1)
    assert "accepts batches of 8 only" in found.explain()


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_cross_entropy_divided_twice_by_the_batch_is_an_elbo(batch_size):
    found = diagnose(lambda *a: package_bernoulli(*a) / len(a[0]), batch_size=batch_size)
    assert found.is_elbo
    assert found.recon_weight is None and found.kl_weight is None  # no weight of one example is defined


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_cross_entropy_with_mixed_reductions_is_no_elbo_at_any_batch_size(batch_size):
    found = diagnose(lambda r, x, m, v: bce(r, x, reduction="sum") / 8 + kl_mean(m, v), batch_size=batch_size)
    assert found.family == "bernoulli" and not found.is_elbo


def test_state_between_calls_is_noticed():
    step = iter(range(1000))

    with pytest.raises(ValueError, match="keeps a state between calls"):
        diagnose(lambda r, x, m, v: sse(r, x) + next(step) / 1000 * kl_mean(m, v))


# --- active latents --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variance", "count"), [(32.0, 0), (0.5, 3), (0.1, 10)])  # 12 exceed 0.1
def test_active_latents_follow_from_the_data(digits_x, variance, count):
    def loss_fn(r, x, m, v):
        return sse(r, x) / variance + kl_mean(m, v)

    found = diagnose(loss_fn, **of_size(64, 10), data=digits_x)
    assert found.num_active == count
    assert f"would use {count} of its 10 latents" in found.explain()


@pytest.mark.parametrize("error", [bce_with_logits, l1_loss, mse_loss])
def test_active_latents_are_said_of_valid_gaussian_losses_only(digits_x, error):
    def loss_fn(r, x, m, v):
        return 64 * error(r, x) + (0 if error is mse_loss else kl_mean(m, v))

    found = diagnose(loss_fn, **of_size(64, 10), data=digits_x)
    assert found.num_active is None


# --- what a reader sees ----------------------------------------------------------------------------------


def test_explanation_starts_with_the_verdict():
    verdict = "This is the negative ELBO of a Gaussian likelihood with standard deviation 19.799"
    assert diagnose(WILD["gaussian", "loc"]["mean-error"][0]).explain().startswith(verdict)
    found = diagnose(lambda r, x, m, v: D * bce_with_logits(r, x) + 4 * kl_mean(m, v))
    assert "a beta-VAE objective, beta = 4," in found.explain()


def test_html_is_a_table_without_unescaped_text():
    found = diagnose(half_sse)
    page = found._repr_html_()
    assert page.startswith("<table>") and page.count("<tr>") == page.count("</tr>") == 7
    assert "<td>gaussian</td>" in page and "<td>yes</td>" in page
    assert page.index("standard deviation 1,") < page.index("<td>") < page.index("has the weight")
    odd = LossDiagnosis(
        **{**vars(found), "kl_fault": "<script>", "verdict": "<script>", "advice": ("<script>",)}
    )
    assert "<script>" not in odd._repr_html_()


# --- bad input -------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    def forward(self, r, x, m, v):
        return half_sse(r + 0.1 * torch.randn_like(r), x, m, v)


BAD_LOSSES = {
    "vector": (lambda r, x, m, v: (r - x).square().sum(1), "returned shape (8,) on cpu, not a scalar"),
    "number": (lambda r, x, m, v: 3.0, "returned a float, not a floating point tensor"),
    "nan": (lambda r, x, m, v: half_sse(r, x, m, v) * float("nan"), "NaN or infinite"),
    "infinite": (lambda r, x, m, v: half_sse(r, x, m, v) / 0.0, "NaN or infinite"),
    "detached": (lambda r, x, m, v: half_sse(r, x, m, v).detach(), "not differentiable"),
    "ignores-recon": (lambda r, x, m, v: x.sum() + kl_mean(m, v), "ignores recon_x"),
    "ignores-x": (lambda r, x, m, v: r.square().mean() + kl_mean(m, v), "ignores x"),
    "two-arguments": (lambda r, x: mse_loss(r, x), "TypeError"),
    "images": (lambda r, x, m, v: half_sse(r.view(-1, 1, 30, 30), x, m, v), "RuntimeError"),
    "its-own-error": (lambda r, x, m, v: {}["weights"], "KeyError"),
    "its-own-error-in-float32": (lambda r, *rest: r @ torch.ones(D) + {}["missing"], "KeyError"),
    "random": (Noisy(), "loss_fn is random"),
}


@pytest.mark.parametrize(("loss_fn", "message"), BAD_LOSSES.values(), ids=BAD_LOSSES)
def test_unusable_losses_are_refused_with_the_expected_form(loss_fn, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        diagnose(loss_fn)
    form = "loss_fn(recon_x, x, mu, logvar) -> scalar"
    assert form in str(caught.value) or message == "loss_fn is random"


NO_SIZES = (0, 2.0, "8", None, True)
BAD_SETTINGS = [
    *(({key: n}, f"{key} must be a positive integer, got {n!r}") for key in of_size(1, 1) for n in NO_SIZES),
    *(({"seed": seed}, "seed must be an integer") for seed in (-1, 2**70, None, 1.5)),
    *(({"loss_fn": f}, "loss_fn must be a function or an instance") for f in (nn.MSELoss, None, 3)),
    ({"data": torch.zeros(5, 3)}, "data must have shape (N, 784), N >= 2, got (5, 3)"),
    ({"data": torch.zeros(5, D, dtype=torch.uint8)}, "floating point tensor, got a torch.uint8 tensor"),
    ({"data": [[0.0] * D] * 3}, "data must be a dense floating point tensor, got a list"),
    ({"data": torch.zeros(1, D)}, "N >= 2, got (1, 784)"),
    ({"data": torch.full((3, D), math.nan)}, "data must be finite"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS, ids=[message for _, message in BAD_SETTINGS])
def test_diagnose_loss_rejects_bad_settings(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        diagnose(**{"loss_fn": half_sse, **settings})


# --- the reverse -----------------------------------------------------------------------------------------


def reduced(terms: Tensor, how: str) -> Tensor:
    return terms.mean() if how == "mean" else terms.sum(1).mean()


@pytest.mark.parametrize("recon", ["mean", "sum"])
@pytest.mark.parametrize("kl", ["mean", "sum"])
@pytest.mark.parametrize(
    ("error", "options", "beta"),
    [
        (mse_loss, {"scale": 0.1}, 0.01),
        (mse_loss, {"scale": 2.0}, 4.0),
        (mse_loss, {"scale": 0.5, "beta": 4.0}, 1.0),
        (bce_with_logits, {"beta": 0.25}, 0.25),
    ],
)
def test_kl_weight_for_a_loss_is_what_the_diagnosis_finds(recon, kl, error, options, beta):
    weight = kl_weight_for(data_dim=D, latent_dim=K, recon=recon, kl=kl, **options)

    def loss_fn(r, x, m, v):
        return reduced(error(r, x, reduction="none"), recon) + weight * reduced(kl_terms(m, v), kl)

    assert diagnose(loss_fn).beta == pytest.approx(beta, rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": 0.0}, "scale must be a positive number, got 0.0"),
        ({"beta": -1.0}, "beta must be a positive number, got -1.0"),
        ({"beta": math.nan}, "beta must be a positive number, got nan"),
        ({"data_dim": 0}, "data_dim must be a positive number, got 0"),
        ({"latent_dim": 0}, "latent_dim must be a positive number, got 0"),
        ({"recon": "none"}, "recon must be 'mean' or 'sum', got 'none'"),
        ({"kl": "batchmean"}, "kl must be 'mean' or 'sum', got 'batchmean'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_kl_weight_for_rejects_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kl_weight_for(**{"data_dim": D, "latent_dim": K, **wrong})


# --- the command line ------------------------------------------------------------------------------------

SOURCE = """
import torch

def loss_fn(recon_x, x, mu, logvar):
    kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)
    return (recon_x - x).square().mean() + kl.mean()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(SOURCE, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)  # the command changes both
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


SIZES = ("--data-dim", "64", "--latent-dim", "5")


@pytest.mark.long
def test_command_runs_a_file_as_python_would(folder):
    (folder / "inner").mkdir()
    (folder / "train.py").rename(folder / "inner" / "losses.py")
    lines = ["from __future__ import annotations", "from dataclasses import dataclass"]
    lines += ["from losses import loss_fn", "@dataclass", "class Settings:", "    width: int = 3"]
    (folder / "inner" / "train.py").write_text("\n".join(lines), "utf-8")
    command = [sys.executable, "-m", "vaecourse", "diagnose", "inner/train.py:loss_fn", *SIZES]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "executing inner/train.py\n")
    assert "5.65685" in result.stdout


def test_command_diagnoses_a_function_of_a_file_and_says_that_it_executes_it(folder, capsys):
    assert main(["diagnose", "train.py:loss_fn", *SIZES, "--data", "digits"]) == 0
    printed = capsys.readouterr()
    assert "standard deviation 5.65685" in printed.out and "0 of its 5 latents" in printed.out
    assert printed.err == "executing train.py\n"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("train.py", "expected FILE.py:FUNCTION, got 'train.py'"),
        ("absent.py:loss_fn", "there is no file absent.py"),
        ("train.py:los_fn", "train.py has no function los_fn; it has loss_fn"),
        ("notes.txt:loss_fn", "notes.txt is not a Python file"),
        ("broken.py:loss_fn", "broken.py does not run: ZeroDivisionError"),
        ("wrong.py:loss_fn", "loss_fn returned a float, not a floating point tensor"),
        ("exits.py:loss_fn", "exits.py does not run: SystemExit: 3"),
    ],
)
def test_command_says_what_it_cannot_use(folder, capsys, place, message):
    (folder / "notes.txt").write_text("nothing", "utf-8")
    (folder / "broken.py").write_text("1 / 0", "utf-8")
    (folder / "exits.py").write_text("raise SystemExit(3)", "utf-8")
    (folder / "wrong.py").write_text("def loss_fn(*arguments): return 1.0", "utf-8")
    assert main(["diagnose", place, *SIZES]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and f"vaecourse: {message}" in printed.err
