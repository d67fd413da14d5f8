"""The equations of the second chapter: one hidden number whose integral is known, then linear models."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggauss
from scipy import integrate, special, stats
from torch import Tensor
from torch.distributions import Normal

from tests.book.oracles import F64, assert_mean, column, generator, hermite
from vaecourse.densities import gaussian_nll
from vaecourse.divergences import kl_standard_normal
from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.linear_vae import LinearVAE
from vaecourse.models import mlp_vae
from vaecourse.networks import mlp
from vaecourse.objectives import elbo_terms, importance_weighted_bound, log_importance_weights

SCALE = 0.3  # of the noise on z**2
OBSERVATIONS = pytest.mark.parametrize("x", [-0.2, 0.4, 1.5])
BELLS = pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (1.2, 0.12), (-0.8, 0.3)])
# f(Z) @ W is the integral of f from -8 to 8, by Gauss-Legendre rules on 160 panels
Z = (np.linspace(-7.95, 7.95, 160)[:, None] + 0.05 * leggauss(20)[0]).ravel()
W = np.tile(0.05 * leggauss(20)[1], 160)


def power_model(loc: float = 0.0, scale: float = 1.0) -> SimpleNamespace:
    """p(z) = N(0, 1), p(x|z) = N(z**2, SCALE**2), and one q for all x: what an objective needs of a model."""
    return SimpleNamespace(
        encode=lambda x: (torch.full_like(x, loc), torch.full_like(x, math.log(scale))),
        decode=torch.square,
        likelihood=SimpleNamespace(nll=partial(gaussian_nll, scale=SCALE)),
    )


def log_joint(z: np.ndarray, x: float | np.ndarray, scale: float = SCALE) -> np.ndarray:
    return stats.norm.logpdf(z) + stats.norm.logpdf(x, z**2, scale)


def evidence(x: float | np.ndarray) -> np.ndarray:
    return np.exp(log_joint(Z, np.asarray(x)[..., None])) @ W


def single(x: float, count: int = 1) -> Tensor:
    return torch.full((count, 1), x, dtype=F64)


# --- the evidence, and sampling the prior ----------------------------------------------------------------


@pytest.mark.equation("eq-joint")
@OBSERVATIONS
def test_joint_density_is_what_the_importance_weights_contain(x):
    """With q = N(0.5, 0.8**2): log w = log p(z) + log p(x|z) - log q at the z that was drawn."""
    found = log_importance_weights(power_model(0.5, 0.8), single(x), num_samples=5, generator=generator())
    z = 0.5 + 0.8 * torch.randn(5, 1, dtype=F64, generator=generator()).numpy()
    np.testing.assert_allclose(found, log_joint(z, x) - stats.norm.logpdf(z, 0.5, 0.8), rtol=1e-10)


@pytest.mark.equation("eq-joint", "eq-evidence")
def test_joint_density_and_evidence_integrate_to_one():
    offsets, xs = np.linspace(-3, 3, 121), np.linspace(-2, 30, 401)  # of x from z**2, and x
    inner = np.exp(log_joint(Z, Z**2 + offsets[:, None])) @ W
    assert np.trapezoid(inner, offsets) == pytest.approx(1, abs=1e-9)
    assert np.trapezoid(evidence(xs), xs) == pytest.approx(1, abs=1e-6)


@pytest.mark.equation("eq-evidence")
@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.0), (0.0, 1.0), (1.0, 2.0)])
def test_evidence_matches_the_share_of_drawn_observations(low, high):
    z, noise = torch.randn(2, 400_000, dtype=F64, generator=generator())
    x, xs = z.square() + SCALE * noise, np.linspace(low, high, 51)
    assert_mean(((x >= low) & (x < high)).double(), integrate.simpson(evidence(xs), x=xs))


@pytest.mark.equation("eq-naive-estimate")
@OBSERVATIONS
def test_average_over_the_prior_is_unbiased(x):
    z = torch.randn(400_000, 1, dtype=F64, generator=generator())
    assert_mean((-gaussian_nll(single(x, len(z)), z.square(), SCALE)).exp(), evidence(x))


def concentration(x: float, scale: float) -> float:
    """E[p(x|z)**2] / p(x)**2 over the prior."""
    likelihood = stats.norm.pdf(x, Z**2, scale)
    mean, mean_square = (stats.norm.pdf(Z) * likelihood**power @ W for power in (1, 2))
    return mean_square / mean**2


@pytest.mark.equation("eq-relative-error")
@pytest.mark.parametrize("scale", [0.3, 0.1])
@pytest.mark.parametrize("num_draws", [20, 200])
def test_relative_error_of_the_naive_estimate(scale, num_draws):
    z = torch.randn(20_000, num_draws, dtype=F64, generator=generator())
    estimates = Normal(z.square(), scale).log_prob(torch.tensor(1.5)).exp().mean(1)
    expected = math.sqrt((concentration(1.5, scale) - 1) / num_draws)
    assert (estimates.std() / estimates.mean()).item() == pytest.approx(expected, rel=0.05)


@pytest.mark.equation("eq-concentration-power")
@pytest.mark.parametrize("latent_dim", [2, 3])
def test_concentration_of_independent_copies_is_a_power(latent_dim):
    z = torch.randn(1_000_000, latent_dim, dtype=F64, generator=generator())
    densities = Normal(z.square(), SCALE).log_prob(torch.tensor(1.5)).sum(1).exp()
    measured = (densities.square().mean() / densities.mean() ** 2).item()
    assert measured == pytest.approx(concentration(1.5, SCALE) ** latent_dim, rel=0.05)


# --- the bound and its gap -------------------------------------------------------------------------------


def mean_under_q(loc: float, scale: float, function) -> float:
    return stats.norm.pdf(Z) * function(loc + scale * Z) @ W


def exact_elbo(x: float, loc: float, scale: float) -> float:
    """Eq. (eq-elbo-jensen) by quadrature, centred on q."""
    return mean_under_q(loc, scale, lambda z: log_joint(z, x) - stats.norm.logpdf(z, loc, scale))


@pytest.mark.equation("eq-elbo-jensen", "eq-elbo-terms", "eq-gaussian-elbo")
@OBSERVATIONS
@BELLS
def test_elbo_is_mean_log_weight_and_reconstruction_minus_divergence_from_the_prior(x, loc, scale):
    exact, model = exact_elbo(x, loc, scale), power_model(loc, scale)
    log_weights = log_importance_weights(model, single(x), num_samples=200_000, generator=generator())
    assert_mean(log_weights[:, 0], exact)
    # E(x - z^2)^2 from the moments E z^2 = m^2 + s^2 and E z^4 = m^4 + 6 m^2 s^2 + 3 s^4
    second = loc**2 + scale**2
    fourth = loc**4 + 6 * loc**2 * scale**2 + 3 * scale**4
    nll = (x**2 - 2 * x * second + fourth) / (2 * SCALE**2) + math.log(SCALE * math.sqrt(2 * math.pi))
    kl = 0.5 * (loc**2 + scale**2 - 1) - math.log(scale)
    assert -nll - kl == pytest.approx(exact, rel=1e-9)
    terms = elbo_terms(model, single(x, 200_000), generator=generator())
    assert_mean(terms.nll, nll)
    assert terms.kl[0].item() == pytest.approx(kl)


@pytest.mark.equation("eq-posterior")
@OBSERVATIONS
def test_posterior_is_a_density_with_two_equal_halves(x):
    posterior = np.exp(log_joint(Z, x)) / evidence(x)
    assert [posterior @ W, posterior * (Z > 0) @ W] == pytest.approx([1, 0.5], abs=1e-10)


@pytest.mark.equation("eq-elbo-jensen", "eq-elbo-gap")
@OBSERVATIONS
@BELLS
def test_elbo_is_below_the_log_evidence_by_the_divergence_from_the_posterior(x, loc, scale):
    log_p = math.log(evidence(x))
    gap = mean_under_q(loc, scale, lambda z: stats.norm.logpdf(z, loc, scale) - (log_joint(z, x) - log_p))
    assert gap > 0
    assert exact_elbo(x, loc, scale) < log_p
    assert exact_elbo(x, loc, scale) + gap == pytest.approx(log_p, abs=1e-9)


def test_one_bell_for_two_peaks_misses_one_bit():
    """With little noise, the best q covers one arm, and the gap tends to log 2."""
    z, mode, gaps = np.linspace(0, 4, 40_001), math.sqrt(1.5), []
    for scale in (0.3, 0.05):
        log_posterior = log_joint(z, 1.5, scale)
        log_posterior -= math.log(2 * np.trapezoid(np.exp(log_posterior), z))
        log_q = stats.norm.logpdf(z, mode, scale / (2 * mode))  # noise / slope
        gaps.append(np.trapezoid(np.exp(log_q) * (log_q - log_posterior), z))
    assert gaps[0] > gaps[1] > math.log(2)
    assert gaps[1] == pytest.approx(math.log(2), abs=0.01)


# --- gradients through draws -----------------------------------------------------------------------------


@pytest.mark.equation("eq-score-function")
@pytest.mark.parametrize(("loc", "scale"), [(0.7, 0.4), (1.2, 0.1), (0.0, 2.0)])
def test_score_function_estimates_the_gradient_of_the_mean_square(loc, scale):
    m = torch.full((400_000,), loc, dtype=F64, requires_grad=True)
    z = loc + scale * torch.randn(400_000, dtype=F64, generator=generator())
    (score,) = torch.autograd.grad(Normal(m, scale).log_prob(z).sum(), m)
    assert_mean(z.square() * score, 2 * loc)


@pytest.mark.equation("eq-reparameterisation")
@BELLS
def test_reparameterised_gradient_of_the_elbo_matches_finite_difference(loc, scale):
    """E_eps of the pathwise gradient, by Gauss-Hermite quadrature, which is exact for polynomials."""
    nodes, weights = (torch.from_numpy(a) for a in hermite(8))
    m = torch.tensor(loc, dtype=F64, requires_grad=True)
    (weights @ gaussian_nll(single(1.5, 8), (m + scale * nodes)[:, None].square(), SCALE)).backward()
    step, kl_gradient = 1e-4, loc
    finite = (exact_elbo(1.5, loc + step, scale) - exact_elbo(1.5, loc - step, scale)) / (2 * step)
    assert -m.grad.item() - kl_gradient == pytest.approx(finite, rel=1e-5, abs=1e-5)


@pytest.mark.equation("eq-gradient-variances")
@pytest.mark.parametrize(("loc", "scale"), [(0.7, 0.4), (1.2, 0.05), (0.0, 2.0), (-3.0, 1.0)])
def test_variances_of_both_gradient_estimators(loc, scale):
    """By Gauss-Hermite quadrature, exact up to polynomials of degree 23."""
    nodes, weights = hermite(12)
    for draws, variance in [
        (2 * (loc + scale * nodes), 4 * scale**2),
        ((loc + scale * nodes) ** 2 * nodes / scale, loc**4 / scale**2 + 14 * loc**2 + 15 * scale**2),
    ]:
        assert weights @ draws == pytest.approx(2 * loc, abs=1e-10)
        assert weights @ draws**2 - (weights @ draws) ** 2 == pytest.approx(variance, rel=1e-9)


# --- the linear model ------------------------------------------------------------------------------------


@pytest.mark.equation("eq-linear-vae")
@torch.no_grad()
def test_linear_vae_draws_have_the_moments_of_its_evidence():
    torch.manual_seed(0)
    model = LinearVAE(data_dim=4, latent_dim=2, scale=0.5).double()
    z = torch.randn(200_000, 2, dtype=F64, generator=generator())
    x = model.likelihood.sample(model.decode(z), generator=generator(1))
    marginal = model.marginal()
    torch.testing.assert_close(x.mean(0), marginal.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(x.T.cov(), marginal.covariance_matrix, rtol=0, atol=0.02)


def eigenvalues_of(x: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)


def bound_by_eigenvalues(model: LinearVAE, x: Tensor) -> float:
    """Right side of Eq. (eq-ppca-bound) at the eigenvalues of the model's covariance."""
    model_values = torch.linalg.eigvalsh(model.marginal().covariance_matrix).flip(0)
    terms = math.log(2 * math.pi) + model_values.log() + eigenvalues_of(x) / model_values
    return -0.5 * terms.sum().item()


@pytest.mark.equation("eq-ppca-bound")
@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_likelihood_is_below_the_bound_by_eigenvalues(digits_x, seed):
    torch.manual_seed(seed)
    model = LinearVAE(64, 5, scale=0.3).double()
    model.decoder.bias.copy_(digits_x.mean(0))
    assert model.log_likelihood(digits_x).mean().item() < bound_by_eigenvalues(model, digits_x)


@pytest.mark.equation("eq-ppca-bound")
@pytest.mark.parametrize("variance", [0.1, 0.5])
@torch.no_grad()
def test_likelihood_attains_the_bound_with_the_eigenvectors_of_the_data(digits_x, variance):
    model = LinearVAE.from_ppca(digits_x, 5, scale=math.sqrt(variance))
    found = model.log_likelihood(digits_x).mean().item()
    assert found == pytest.approx(bound_by_eigenvalues(model, digits_x), rel=1e-10)


def maximise(model: LinearVAE, x: Tensor, num_steps: int) -> float:
    """Climb the exact ELBO from where the model is; return the ELBO reached.

    Mean and covariance are all that it depends on, and 128 examples are enough to have those of x.
    """
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    spokes = ((len(values) * values.clamp(min=0)).sqrt() * vectors).T
    few = x.mean(0) + torch.cat([spokes, -spokes])
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=num_steps, line_search_fn="strong_wolfe")

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = -model.exact_elbo_terms(few).elbo().mean()
        loss.backward()
        return loss

    optimizer.step(evaluate)
    return model.exact_elbo_terms(x).elbo().mean().item()


@pytest.mark.equation("eq-active-latents")
@pytest.mark.parametrize(("variance", "best"), [(0.5, -41.2741), (1.0, -61.1587)])
def test_training_from_random_weights_ends_at_the_predicted_collapse(digits_x, variance, best):
    """At 0.5 three latents stay and at 1 none, with nothing left to optimise: the ELBO is the best."""
    torch.manual_seed(0)
    model = LinearVAE(64, 6, scale=math.sqrt(variance)).double()
    assert maximise(model, digits_x, 150) == pytest.approx(best, abs=1e-3)
    kept = model.weight.detach().square().sum(0) > 1e-3
    assert kept.sum() == (eigenvalues_of(digits_x) > variance).sum()


@pytest.mark.equation("eq-linear-rate")
@pytest.mark.parametrize(("variance", "beta"), [(0.02, 1.0), (0.1, 1.0), (0.1, 4.0), (1.0, 1.0)])
def test_mean_kl_of_the_optimum_is_half_the_log_ratio_of_variances(digits_x, variance, beta):
    model = LinearVAE.from_ppca(digits_x, 8, scale=math.sqrt(variance), beta=beta)
    ratio = eigenvalues_of(digits_x)[:8] / (beta * variance)
    expected = 0.5 * ratio[ratio > 1].log().sum()
    torch.testing.assert_close(model.exact_elbo_terms(digits_x).kl.mean(), expected, rtol=1e-9, atol=1e-12)


# --- collapse for any decoder ----------------------------------------------------------------------------


@torch.no_grad()
def gain_over_constant(x: Tensor, decode, variance: float) -> tuple[float, float]:
    """Both sides of Eq. (eq-any-decoder), the expectation over 400 codes taken as the prior itself."""
    g = decode(torch.randn(400, 2, dtype=F64, generator=generator()))  # (codes, D)
    exponent = ((x - x.mean(0)) @ g.T - 0.5 * g.square().sum(1)) / variance  # (N, codes)
    slack = 1 - x.shape[1] / (4 * variance)
    right = (-g.square().sum(1) / (2 * variance) * slack).logsumexp(0)
    return (exponent.logsumexp(1) - math.log(400)).mean().item(), right.item() - math.log(400)


@pytest.mark.equation("eq-any-decoder")
@pytest.mark.parametrize("variance", [4.0, 16.0, 32.0])
@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_evidence_of_any_decoder_obeys_the_bound(digits_x, variance, size):
    torch.manual_seed(0)
    network = mlp([2, 30, 64]).double()
    left, right = gain_over_constant(digits_x, lambda z: size * network(z), variance)
    assert left <= right
    assert right <= 0 or variance < 16  # D / 4


def test_a_decoder_beats_the_constant_one_at_a_small_variance(digits_x):
    """The same measure can be positive: the bound says nothing below D / 4."""
    eigenvectors = torch.linalg.eigh(torch.cov(digits_x.T, correction=0)).eigenvectors[:, -2:]
    left, _ = gain_over_constant(digits_x, lambda z: 0.8 * z @ eigenvectors.T, 0.05)
    assert left > 1


# --- what the KL term pays for ---------------------------------------------------------------------------


def surgery(locs: list[float], scales: list[float]) -> tuple[float, float, float]:
    """Average KL in closed form; information and marginal KL by quadrature."""
    log_q = stats.norm.logpdf(Z, np.array(locs)[:, None], np.array(scales)[:, None])  # (parts, nodes)
    log_aggregate = special.logsumexp(log_q, axis=0) - math.log(len(locs))
    information = (np.exp(log_q) * (log_q - log_aggregate)).mean(0) @ W
    marginal = np.exp(log_aggregate) * (log_aggregate - stats.norm.logpdf(Z)) @ W
    return kl_standard_normal(column(*locs), column(*scales).log()).mean().item(), information, marginal


@pytest.mark.equation("eq-elbo-surgery", "eq-information-limit")
@pytest.mark.parametrize(
    ("locs", "scales"), [([-3, 0, 3], [0.2] * 3), ([-1.5, 0.2, 1.4], [0.4, 0.3, 0.5]), ([0, 0, 0], [1.0] * 3)]
)
def test_mean_kl_is_information_plus_marginal_kl(locs, scales):
    total, information, marginal = surgery(locs, scales)
    assert information + marginal == pytest.approx(total, abs=1e-8)
    assert -1e-9 < information < math.log(3) + 1e-9
    assert marginal > -1e-9


@pytest.mark.equation("eq-information-limit")
def test_information_reaches_its_limits():
    assert surgery([-3, 0, 3], [0.1] * 3)[1] == pytest.approx(math.log(3), abs=1e-6)
    assert surgery([1, 1, 1], [0.5] * 3)[1] == pytest.approx(0, abs=1e-9)


@pytest.mark.equation("eq-aggregate-moments")
def test_rescaling_and_shifting_latents_changes_the_elbo_by_their_moments():
    """The decoder undoes z -> a z + c, so the ELBO's slope at a = 1, c = 0 is that of the KL term alone."""
    torch.manual_seed(0)
    vae = mlp_vae(6, 3, hidden_dims=(5,), likelihood=GaussianLikelihood(0.5)).double()
    x = torch.randn(50, 6, dtype=F64, generator=generator())
    eps = torch.randn(50, 3, dtype=F64, generator=generator(1))
    loc, log_scale = (t.detach() for t in vae.encode(x))
    a, c = (torch.full((3,), value, dtype=F64, requires_grad=True) for value in (1.0, 0.0))
    z = (a * loc + c) + a * log_scale.exp() * eps
    nll = vae.likelihood.nll(x, vae.decode((z - c) / a))
    loss = (nll + kl_standard_normal(a * loc + c, log_scale + a.log())).mean()
    by_scale, by_shift = torch.autograd.grad(loss, (a, c))
    torch.testing.assert_close(by_scale, (loc.square() + (2 * log_scale).exp()).mean(0) - 1)
    torch.testing.assert_close(by_shift, loc.mean(0))
    assert min(by_scale.abs().min(), by_shift.abs().min()) > 0.01  # this model is at no optimum


@pytest.mark.equation("eq-aggregate-moments")
@pytest.mark.parametrize("beta", [0.05, 1.0, 5.0])
def test_aggregate_posterior_of_the_optimum_has_the_moments_of_the_prior(digits_x, beta):
    loc, log_scale = LinearVAE.from_ppca(digits_x, 8, scale=0.3, beta=beta).encode(digits_x)
    second = (loc.square() + (2 * log_scale).exp()).mean(0)
    torch.testing.assert_close(loc.mean(0), torch.zeros(8, dtype=F64), rtol=0, atol=1e-9)
    torch.testing.assert_close(second, torch.ones(8, dtype=F64))


# --- the tighter bound -----------------------------------------------------------------------------------


@pytest.mark.equation("eq-importance-weighted-bound")
def test_importance_weighted_bound_of_two_samples_matches_quadrature_and_of_many_misses_an_arm():
    """L_2 is an integral over two draws, done here on a grid."""
    x, loc, scale = 1.5, 1.0, 0.4
    nodes, weights = hermite(80)
    z = loc + scale * nodes
    log_w = log_joint(z, x) - stats.norm.logpdf(z, loc, scale)
    expected = weights @ (np.logaddexp(log_w[:, None], log_w) - math.log(2)) @ weights
    model, many = power_model(loc, scale), single(x, 200_000)
    assert_mean(importance_weighted_bound(model, many, num_samples=2, generator=generator()), expected)
    assert exact_elbo(x, loc, scale) < expected < math.log(evidence(x))
    # the bound of a bell on one arm stops one bit short
    bell = power_model(1.19, 0.126)
    bound = importance_weighted_bound(bell, single(1.5), num_samples=100_000, generator=generator()).item()
    assert math.log(evidence(1.5)) - bound == pytest.approx(math.log(2), abs=0.02)


# --- numbers that the exercises name ---------------------------------------------------------------------


def test_exercise_clamped_log_variance_costs_two_nats():
    kl = kl_standard_normal(column(0.0), column(1.0)).item()  # log-variance 2
    assert kl == pytest.approx((math.e**2 - 3) / 2)
    assert kl == pytest.approx(2.19, abs=0.005)


def test_exercise_posteriors_as_wide_as_the_prior_shrink_the_decoder(digits_x):
    """With d_j held at 1 the best column has the squared norm sigma * sqrt(lambda_j) - sigma**2."""
    torch.manual_seed(0)
    model = LinearVAE(64, 3, scale=0.2).double()
    model.encoder.log_scale.requires_grad_(False).zero_()
    maximise(model, digits_x, 300)
    found = torch.linalg.svdvals(model.weight.detach()).square()
    expected = 0.2 * eigenvalues_of(digits_x)[:3].sqrt() - 0.2**2
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


@torch.no_grad()
def test_exercise_two_meanings_of_the_log_variance_can_exceed_the_log_evidence(digits_x):
    """KL for scale exp(l / 2), codes of scale exp(l): for narrow posteriors the sum is above log p(x)."""
    model = LinearVAE.from_ppca(digits_x, 5, scale=0.2)
    paid = model.exact_elbo_terms(digits_x).kl
    model.encoder.log_scale.mul_(2)  # the codes that are drawn
    sum_of_both = (-model.exact_elbo_terms(digits_x).nll - paid).mean()
    assert sum_of_both > model.log_likelihood(digits_x).mean() + 0.5
