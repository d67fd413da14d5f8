"""Equations and exercises of the sixth chapter, each against an oracle that does not contain its formula."""

import json
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from tests.book.notebook_rules import ROOT
from tests.book.oracles import F64, generator, smallest
from vaecourse.datasets import binarize, digits, mnist, to_unit_interval
from vaecourse.densities import continuous_bernoulli_nll
from vaecourse.evaluation import nats_to_bits_per_dim, nll_estimate
from vaecourse.linear_vae import LinearVAE
from vaecourse.models import mlp_vae
from vaecourse.objectives import log_importance_weights
from vaecourse.training import Checkpoints, load_checkpoint

X = to_unit_interval(digits()[0], max_level=16).double()
FEW = X[:40]
WHOLE = {"batch_size": 40, "chunk_size": 1000}  # of nll_estimate: all draws of FEW at once


def spoiled(ratio: float, latent_dim: int = 4) -> LinearVAE:
    """The best linear VAE of the digits, but the scales of its encoder are wrong by a factor."""
    model = LinearVAE.from_ppca(X, latent_dim)
    with torch.no_grad():
        model.encoder.log_scale += math.log(ratio)
    return model


def marginal_covariance(model: LinearVAE) -> Tensor:
    weight = model.decoder.weight.detach()
    return weight @ weight.T + model.likelihood.scale**2 * torch.eye(len(weight), dtype=F64)


def exact_log_likelihood(model: LinearVAE, x: Tensor) -> np.ndarray:
    """By scipy, from the marginal covariance."""
    bias, covariance = model.decoder.bias.detach().numpy(), marginal_covariance(model).numpy()
    return stats.multivariate_normal(bias, covariance).logpdf(x.numpy())


def exact_posterior(model: LinearVAE, x: Tensor) -> MultivariateNormal:
    """Of each image, by conditioning the joint Gaussian."""
    weight, bias = model.decoder.weight.detach(), model.decoder.bias.detach()
    gain = torch.linalg.solve(marginal_covariance(model), weight).T  # (K, D)
    return MultivariateNormal((x - bias) @ gain.T, torch.eye(len(gain), dtype=F64) - gain @ weight)


@torch.no_grad()
def weights(model: LinearVAE, x: Tensor, count: int) -> Tensor:
    """Importance weights over their mean p(x), shape (count, images)."""
    log_w = log_importance_weights(model, x, num_samples=count, generator=generator())
    return (log_w - torch.from_numpy(exact_log_likelihood(model, x))).exp()


def one_latent_weights(*shape: int) -> Tensor:
    """Draws of the weight of one latent over its mean: posterior N(0, 1), q = N(0, 1.5**2)."""
    z = 1.5 * torch.randn(shape, generator=generator())
    return 1.5 * torch.exp(-0.5 * z.square() * (1 - 1 / 1.5**2)).double()


def second_moment(ratio: float, shift: float = 0.0) -> float:
    """Mean of (posterior / q)**2 under q for one latent, by numerical integration."""
    posterior, q = stats.norm(0, 1), stats.norm(shift, ratio)
    middle, width = -shift / (2 * ratio**2 - 1), 12 / math.sqrt(1 - 1 / (2 * ratio**2))
    low, high = middle - width, middle + width
    return integrate.quad(lambda z: math.exp(2 * posterior.logpdf(z) - q.logpdf(z)), low, high, limit=200)[0]


# ---- two models ----


@pytest.mark.equation("eq-elbo-difference")
@torch.no_grad()
def test_elbo_difference_is_that_of_the_likelihoods_less_that_of_the_gaps():
    gaps, bounds, values = [], [], []
    for model in (spoiled(0.8, 3), spoiled(1.7, 5)):
        loc, log_scale = model.encode(FEW)
        q = MultivariateNormal(loc, torch.diag_embed((2 * log_scale).exp()))
        gaps.append(kl_divergence(q, exact_posterior(model, FEW)).numpy())
        bounds.append(model.exact_elbo_terms(FEW).elbo().numpy())
        values.append(exact_log_likelihood(model, FEW))
    left, right = bounds[0] - bounds[1], (values[0] - values[1]) - (gaps[0] - gaps[1])
    np.testing.assert_allclose(left, right, rtol=1e-8)
    assert np.abs(gaps[0] - gaps[1]).max() > 0.5


# ---- the estimate ----


@pytest.mark.equation("eq-likelihood-estimate")
def test_estimate_is_the_log_of_the_mean_weight():
    model = spoiled(1.3)
    mean_weight = weights(model, FEW, 200).mean(0).log().numpy() + exact_log_likelihood(model, FEW)
    estimate = nll_estimate(model, FEW, num_samples=200, chunk_size=7, generator=generator())
    assert estimate.per_image.shape == (40,)
    assert -estimate.nats == pytest.approx(mean_weight.mean(), abs=0.05)  # other draws in other chunks
    whole = nll_estimate(model, FEW, num_samples=200, **WHOLE, generator=generator())
    np.testing.assert_allclose(-whole.per_image.numpy(), mean_weight, rtol=1e-10)


@pytest.mark.equation("eq-relative-weight")
@torch.no_grad()
def test_relative_weight_is_the_posterior_over_q():
    model = spoiled(1.3)
    loc, log_scale = model.encode(FEW)
    z = loc + log_scale.exp() * torch.randn(9, *loc.shape, dtype=F64, generator=generator())
    log_q = Normal(loc, log_scale.exp()).log_prob(z).sum(-1)
    expected = (exact_posterior(model, FEW).log_prob(z) - log_q).exp()
    torch.testing.assert_close(weights(model, FEW, 9), expected, rtol=1e-7, atol=1e-12)


@pytest.mark.equation("eq-weight-variance")
@pytest.mark.parametrize("shift", [0.0, 0.4, -1.1])
@pytest.mark.parametrize("ratio", [0.75, 0.9, 1.0, 1.2, 2.0])
def test_second_moment_of_a_relative_weight_matches_quadrature(ratio, shift):
    excess = 2 * ratio**2 - 1
    formula = ratio**2 / math.sqrt(excess) * math.exp(shift**2 / excess)
    assert formula == pytest.approx(second_moment(ratio, shift), rel=1e-8)


@pytest.mark.equation("eq-weight-variance")
def test_weight_variance_multiplies_over_latents():
    drawn = weights(spoiled(1.2, 6), FEW, 20_000).var(0)
    assert drawn.mean().item() == pytest.approx(second_moment(1.2) ** 6 - 1, rel=0.03)


@pytest.mark.equation("eq-weight-variance")
@pytest.mark.parametrize("ratio", [0.6, 0.65, math.sqrt(0.5), 0.75, 0.8])
def test_weight_variance_is_infinite_at_half_the_variance_and_below(ratio):
    """The integral to L grows without end at r**2 <= 1/2, and stops growing above."""
    exponent = 1 / (2 * mpmath.mpf(ratio) ** 2) - 1
    near, far = (mpmath.quad(lambda z: mpmath.exp(exponent * z**2), [0, 1, end]) for end in (20, 40))
    assert far > 1.9 * near if ratio**2 < 0.5 + 1e-9 else far < 1.001 * near


@pytest.mark.equation("eq-estimate-bias")
@pytest.mark.parametrize("count", [20, 50])
def test_bias_is_half_the_variance_over_the_samples(count):
    """Of one latent, where many averages can be drawn."""
    missing = -one_latent_weights(400_000, count).mean(1).log()
    standard_error = missing.std().item() / math.sqrt(len(missing))
    bias = (second_moment(1.5) - 1) / (2 * count)
    assert missing.mean().item() == pytest.approx(bias, abs=4 * standard_error + 0.2 / count**2)
    assert standard_error < 0.06 * bias


@pytest.mark.equation("eq-estimate-bias")
def test_bias_at_one_sample_is_the_gap_and_below_the_formula():
    gap = 12 * (0.5 * (1.5**2 - 1) - math.log(1.5))
    missing = -weights(spoiled(1.5, 12), FEW, 4000).log().mean().item()
    assert missing == pytest.approx(gap, rel=0.02)
    assert gap < (second_moment(1.5) ** 12 - 1) / 2


# ---- errors ----


@pytest.mark.equation("eq-monte-carlo-error", "eq-effective-samples")
def test_reported_error_is_that_of_the_textbook_for_a_mean_of_weights():
    model = spoiled(1.3)
    w = weights(model, FEW, 500)
    relative = w.var(0, correction=0) / w.mean(0).square() / 500  # of the mean weight, by the delta method
    estimate = nll_estimate(model, FEW, num_samples=500, **WHOLE, generator=generator())
    assert estimate.standard_error == pytest.approx(relative.sum().sqrt().item() / 40, rel=1e-6)
    effective = w.sum(0).square() / w.square().sum(0)
    torch.testing.assert_close(effective, 500 / (1 + 500 * relative))


@pytest.mark.equation("eq-effective-samples")
@pytest.mark.parametrize(("w", "count"), [([1.0] * 7, 7), ([1.0, 0, 0, 0, 0, 0, 0], 1)])
def test_effective_samples_count_equal_weights(w, count):
    assert sum(w) ** 2 / sum(value**2 for value in w) == count


@pytest.mark.equation("eq-bias-from-error")
def test_bias_is_half_the_number_of_images_times_the_squared_error():
    model = spoiled(1.5, 12)
    estimate = nll_estimate(model, X, num_samples=100, generator=generator())
    bias, error = estimate.nats + exact_log_likelihood(model, X).mean(), estimate.standard_error
    assert bias == pytest.approx(len(X) / 2 * error**2, abs=3 * error)
    assert bias > 5 * error  # so that the comparison means something


@pytest.mark.equation("eq-sampling-error", "eq-paired-error")
def test_sampling_error_is_the_scatter_over_other_images_and_smaller_for_a_difference():
    models = [LinearVAE.from_ppca(X, count) for count in (4, 6)]
    first, second = (exact_log_likelihood(model, X) for model in models)
    covariance = np.cov(first, second)
    paired = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) / math.sqrt(200)
    rows = np.random.default_rng(0).integers(len(X), size=(4000, 200))
    assert first[rows].mean(1).std() == pytest.approx(first.std() / math.sqrt(200), rel=0.04)
    assert (first - second)[rows].mean(1).std() == pytest.approx(paired, rel=0.04)
    assert paired < 0.5 * math.hypot(first.std(), second.std()) / math.sqrt(200)
    reported = nll_estimate(models[0], X[:200], num_samples=2, generator=generator()).sampling_error
    assert reported == pytest.approx(first[:200].std(ddof=1) / math.sqrt(200), rel=1e-6)


# ---- information ----


def information(loc: Tensor, scale: Tensor, z: Tensor) -> Tensor:
    """The estimate, from torch's own densities and all pairs (codes, images) written out."""
    log_q = Normal(loc, scale).log_prob(z.unsqueeze(-2)).sum(-1)
    return (log_q.diagonal(dim1=-2, dim2=-1) - log_q.logsumexp(-1) + math.log(len(loc))).mean(-1)


@pytest.mark.equation("eq-information-estimate")
def test_information_estimate_matches_quadrature():
    loc, scale = torch.tensor([[-1.0, 0.2, 1.5], [0.6, 0.9, 0.5]], dtype=F64)[..., None]
    grid = np.linspace(-8, 8, 4001)
    q = stats.norm.pdf(grid, loc.numpy(), scale.numpy())  # (images, grid)
    log_ratio = stats.norm.logpdf(grid, loc.numpy(), scale.numpy()) - np.log(q.mean(0))
    exact = integrate.simpson(q * log_ratio, x=grid).mean()
    z = loc + scale * torch.randn(4000, 3, 1, dtype=F64, generator=generator())
    assert information(loc, scale, z).mean().item() == pytest.approx(exact, abs=0.03)


@pytest.mark.equation("eq-information-estimate")
def test_information_estimate_never_exceeds_log_n_and_reaches_it_far_apart():
    loc, scale = 100 * torch.arange(50.0, dtype=F64)[:, None], torch.ones(50, 1, dtype=F64)
    assert information(loc, scale, loc).item() == pytest.approx(math.log(50), rel=1e-12)
    assert information(0.01 * loc, scale, 0.01 * loc + 0.3) < math.log(50) - 0.5


@pytest.mark.equation("eq-information-estimate")
def test_formula_of_the_page_is_the_estimate():
    """The page multiplies the squares out, to get by with two products of matrices."""
    loc, log_scale, noise = torch.randn(3, 30, 4, dtype=F64, generator=generator())
    z, variance = loc + log_scale.exp() * noise, (2 * log_scale).exp()
    constant = (loc.square() / variance + 2 * log_scale).sum(1)
    log_q = -0.5 * (z.square() @ (1 / variance).T - 2 * z @ (loc / variance).T + constant)
    found = (log_q.diagonal() - log_q.logsumexp(1) + math.log(30)).mean().item()
    assert found == pytest.approx(information(loc, log_scale.exp(), z).item(), rel=1e-9)


# ---- exercises ----


def test_exercise_elbo_ranking():
    assert 3 / math.sqrt(1000) == pytest.approx(0.095, abs=5e-4)
    assert pytest.approx(0.05) == 1000 / 2 * 0.01**2
    assert pytest.approx((2.6, 4.3)) == (-97.2 + 99.8, -97.0 + 101.3)


def test_exercise_needed_samples():
    count = 400 / (2 * 0.02)
    error = math.sqrt(400 / count) / math.sqrt(10_000)
    assert (count, error, 10_000 / 2 * error**2) == pytest.approx((10_000, 0.002, 0.02))


def test_exercise_one_narrow_latent():
    assert second_moment(0.75) == pytest.approx(1.59, abs=0.005)
    assert 1000 / second_moment(0.75) == pytest.approx(629, abs=0.5)


@torch.no_grad()
def test_exercise_mean_of_logs_is_the_elbo():
    model = spoiled(1.3)
    log_w = log_importance_weights(model, FEW, num_samples=5000, generator=generator())
    assert log_w.mean().item() == pytest.approx(model.exact_elbo_terms(FEW).elbo().mean().item(), abs=0.02)


def test_exercise_average_of_estimates():
    """v = second moment - 1 of one latent; fifty estimates of 20 samples against one of 1,000."""
    ratio = one_latent_weights(2000, 50, 20)
    difference = (ratio.mean((1, 2)).log() - ratio.mean(2).log().mean(1)).mean().item()
    v = second_moment(1.5) - 1
    assert difference == pytest.approx(v / 40 - v / 2000, rel=0.1)
    assert pytest.approx(0.196) == 40 / 200 - 40 / 10_000


def test_exercise_scaled_bits():
    bits = nats_to_bits_per_dim(1500, 3072, num_levels=128)
    assert bits == pytest.approx(7.70, abs=0.005)
    # the same images in [0, 1] have a density that is larger by the factor 2**D
    assert bits == pytest.approx(nats_to_bits_per_dim(1500 - 3072 * math.log(2), 3072))


def test_exercise_tuned_scale():
    tuned, before = (392 * (math.log(variance) + 0.021 / variance) for variance in (0.021, 0.02))
    assert before - tuned == pytest.approx(0.47, abs=0.005)


# ---- the records of the long runs ----

RESULTS = ROOT / "book" / "results"
RECORDS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("mnist-k1-*.json"))}
NAMES = {"model", "k", "nll", "standard_error", "num_samples", "num_images", "seed", "epochs", "minutes"}
NAMES |= {"command", "versions", "machine", "test_bits_seed", "nll_of_each_hundred"}


@pytest.mark.parametrize("name", RECORDS)
def test_record_is_complete_and_agrees_with_itself(name):
    record = RECORDS[name]
    assert set(record) >= NAMES
    assert (record["num_samples"], record["num_images"]) == (5000, 10_000)
    assert record["nll"] == pytest.approx(np.mean(record["nll_of_each_hundred"]), abs=1e-3)
    assert record["nll"] < -record["elbo"]
    assert f"--epochs {record['epochs']}" in record["command"]
    assert f"--seed {record['seed']}" in record["command"] or record["seed"] == 0


def test_shortest_runs_have_three_seeds():
    shortest = min(record["epochs"] for record in RECORDS.values())
    assert len({r["seed"] for r in RECORDS.values() if r["epochs"] == shortest}) >= 3


def test_committed_weights_are_those_of_the_longest_run():
    longest = max(RECORDS.values(), key=lambda record: record["epochs"])
    (weights,) = Checkpoints(RESULTS / "mnist-k1-longest" / "checkpoints").paths()
    assert weights.stat().st_size < 3_000_000
    model = mlp_vae(784, 50, hidden_dims=(200, 200), activation=nn.Tanh)
    model.load_state_dict(load_checkpoint(weights)["model"])
    images = to_unit_interval(mnist("test")[0])
    bits = binarize(images, generator=generator(longest["test_bits_seed"]))[:100]
    found = nll_estimate(model.eval(), bits, num_samples=1000, generator=generator())
    assert found.nats == pytest.approx(longest["nll_of_each_hundred"][0], abs=0.3)
    others = [r["nll_of_each_hundred"][0] for r in RECORDS.values() if r is not longest]
    assert min(abs(found.nats - other) for other in others) > 0.5  # so that the comparison means something


# ---- blank grey pixels ----


def test_cross_entropy_and_density_want_other_logits_for_a_blank_pixel():
    """What the chapter says of the Bernoulli decoder that is judged as a continuous one."""
    u = (torch.arange(2000, dtype=F64)[:, None] + 0.5) / 2000 / 256  # a dequantised pixel of level 0

    def bits(logit: float) -> float:
        return nats_to_bits_per_dim(continuous_bernoulli_nll(u, torch.full_like(u, logit)).mean().item(), 1)

    log_odds = math.log((1 / 512) / (1 - 1 / 512))
    assert log_odds == pytest.approx(-6.2, abs=0.05)
    best = smallest(bits, -800, -1)  # the loss is convex in the logit
    assert best.x == pytest.approx(-512, rel=0.01)
    assert bits(log_odds) - best.fun == pytest.approx(5, abs=0.2)
