"""The equations of the second chapter: one hidden number whose integral is known, then linear models."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from vaecourse.densities import gaussian_nll
from vaecourse.divergences import kl_monte_carlo, kl_standard_normal
from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.linear_vae import LinearVAE
from vaecourse.models import mlp, mlp_vae
from vaecourse.objectives import elbo_terms, importance_weighted_bound, log_importance_weights

F64 = torch.float64
SCALE = 0.3  # of the noise on z**2
OBSERVATIONS = pytest.mark.parametrize("x", [-0.2, 0.4, 1.5])
BELLS = pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (1.2, 0.12), (-0.8, 0.3)])


class PowerModel:
    """p(z) = N(0, 1), p(x|z) = N(z**2, SCALE**2), and one q for all x: what an objective needs of a model."""

    class likelihood:  # noqa: N801
        @staticmethod
        def nll(x: Tensor, params: Tensor) -> Tensor:
            return gaussian_nll(x, params, SCALE)

    def __init__(self, loc: float = 0.0, scale: float = 1.0) -> None:
        self.loc, self.log_scale = loc, math.log(scale)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(x, self.loc), torch.full_like(x, self.log_scale)

    def decode(self, z: Tensor) -> Tensor:
        return z.square()


def joint(z: np.ndarray, x: float) -> np.ndarray:
    return stats.norm.pdf(z) * stats.norm.pdf(x, z**2, SCALE)


def quadrature(function) -> float:
    """Integral over the latent from -8 to 8, by Gauss-Legendre rules on 160 panels."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    left = np.linspace(-8, 8, 161)[:-1, None]
    return float(np.sum(function(left + 0.05 * (nodes + 1)) * 0.05 * weights))


def evidence(x: float) -> float:
    return quadrature(lambda z: joint(z, x))


def single(x: float, count: int = 1) -> Tensor:
    return torch.full((count, 1), x, dtype=F64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_mean_is(draws: Tensor, expected: float, num_errors: float = 4.5) -> None:
    error = draws.std().item() / math.sqrt(len(draws))
    assert abs(draws.mean().item() - expected) < num_errors * error, (draws.mean(), expected, error)


# --- the evidence, and sampling the prior ----------------------------------------------------------------


@pytest.mark.equation("eq-joint")
@OBSERVATIONS
def test_joint_density_is_what_the_importance_weights_contain(x):
    """With q = N(0.5, 0.8**2): log w + log q = log p(z) + log p(x|z) at the z that was drawn."""
    model = PowerModel(0.5, 0.8)
    log_weights = log_importance_weights(model, single(x), num_samples=5, generator=generator())[:, 0]
    z = 0.5 + 0.8 * torch.randn(5, 1, 1, dtype=F64, generator=generator()).ravel().numpy()
    expected = [math.log(joint(float(value), x)) - stats.norm.logpdf(value, 0.5, 0.8) for value in z]
    np.testing.assert_allclose(log_weights.numpy(), expected, rtol=1e-10)


@pytest.mark.equation("eq-joint")
def test_joint_density_integrates_to_one():
    offsets = np.linspace(-3, 3, 601)  # of x from z**2
    total = np.trapezoid([quadrature(lambda z, d=d: joint(z, z**2 + d)) for d in offsets], offsets)
    assert total == pytest.approx(1, abs=1e-9)


@pytest.mark.equation("eq-evidence")
def test_evidence_is_a_density_over_observations():
    xs = np.linspace(-2, 30, 1601)
    assert np.trapezoid([evidence(x) for x in xs], xs) == pytest.approx(1, abs=1e-6)


@pytest.mark.equation("eq-evidence")
def test_evidence_matches_the_share_of_drawn_observations():
    z, noise = torch.randn(2, 400_000, dtype=F64, generator=generator())
    x = z.square() + SCALE * noise
    for low, high in [(-0.5, 0.0), (0.0, 1.0), (1.0, 2.0)]:
        inside = ((x >= low) & (x < high)).double()
        xs = np.linspace(low, high, 51)
        assert_mean_is(inside, integrate.simpson([evidence(value) for value in xs], x=xs))


@pytest.mark.equation("eq-naive-estimate")
@OBSERVATIONS
def test_average_over_the_prior_is_unbiased(x):
    z = torch.randn(400_000, 1, dtype=F64, generator=generator())
    densities = gaussian_nll(single(x, len(z)), z.square(), SCALE).neg().exp()
    assert_mean_is(densities, evidence(x))


def concentration(x: float, scale: float) -> float:
    """E[p(x|z)**2] / p(x)**2 over the prior."""
    mean, mean_square = (
        quadrature(lambda z, power=power: stats.norm.pdf(z) * stats.norm.pdf(x, z**2, scale) ** power)
        for power in (1, 2)
    )
    return mean_square / mean**2


@pytest.mark.equation("eq-relative-error")
@pytest.mark.parametrize("scale", [0.3, 0.1])
@pytest.mark.parametrize("num_draws", [20, 200])
def test_relative_error_of_the_naive_estimate(scale, num_draws):
    z = torch.randn(20_000, num_draws, dtype=F64, generator=generator())
    estimates = torch.distributions.Normal(z.square(), scale).log_prob(torch.tensor(1.5)).exp().mean(1)
    c = concentration(1.5, scale)
    expected = math.sqrt((c - 1) / num_draws)
    assert (estimates.std() / estimates.mean()).item() == pytest.approx(expected, rel=0.05)


@pytest.mark.equation("eq-concentration-power")
@pytest.mark.parametrize("latent_dim", [2, 3])
def test_concentration_of_independent_copies_is_a_power(latent_dim):
    z = torch.randn(1_000_000, latent_dim, dtype=F64, generator=generator())
    densities = torch.distributions.Normal(z.square(), SCALE).log_prob(torch.tensor(1.5)).sum(1).exp()
    measured = (densities.square().mean() / densities.mean() ** 2).item()
    assert measured == pytest.approx(concentration(1.5, SCALE) ** latent_dim, rel=0.05)


# --- the bound and its gap -------------------------------------------------------------------------------


def exact_elbo(x: float, loc: float, scale: float) -> float:
    """Eq. (eq-elbo-jensen) by quadrature, centred on q."""

    def integrand(t: np.ndarray) -> np.ndarray:
        z = loc + scale * t
        log_ratio = (
            stats.norm.logpdf(z) + stats.norm.logpdf(x, z**2, SCALE) - stats.norm.logpdf(z, loc, scale)
        )
        return stats.norm.pdf(t) * log_ratio

    return quadrature(integrand)


@pytest.mark.equation("eq-elbo-jensen")
@OBSERVATIONS
@BELLS
def test_elbo_is_below_the_log_evidence(x, loc, scale):
    assert exact_elbo(x, loc, scale) < math.log(evidence(x))


@pytest.mark.equation("eq-elbo-jensen")
@OBSERVATIONS
@BELLS
def test_elbo_is_the_mean_log_importance_weight(x, loc, scale):
    model = PowerModel(loc, scale)
    log_weights = log_importance_weights(model, single(x), num_samples=200_000, generator=generator())
    assert_mean_is(log_weights[:, 0], exact_elbo(x, loc, scale))


@pytest.mark.equation("eq-elbo-terms")
@pytest.mark.equation("eq-gaussian-elbo")
@OBSERVATIONS
@BELLS
def test_elbo_is_reconstruction_minus_divergence_from_the_prior(x, loc, scale):
    # E(x - z^2)^2 from the moments E z^2 = m^2 + s^2 and E z^4 = m^4 + 6 m^2 s^2 + 3 s^4
    second = loc**2 + scale**2
    fourth = loc**4 + 6 * loc**2 * scale**2 + 3 * scale**4
    nll = (x**2 - 2 * x * second + fourth) / (2 * SCALE**2) + math.log(SCALE * math.sqrt(2 * math.pi))
    kl = 0.5 * (loc**2 + scale**2 - 1) - math.log(scale)
    assert -nll - kl == pytest.approx(exact_elbo(x, loc, scale), rel=1e-9)
    terms = elbo_terms(PowerModel(loc, scale), single(x, 200_000), generator=generator())
    assert_mean_is(terms.nll, nll)
    assert terms.kl[0].item() == pytest.approx(kl)


@pytest.mark.equation("eq-posterior")
@OBSERVATIONS
def test_posterior_is_a_density_with_two_equal_halves(x):
    p = evidence(x)
    total = quadrature(lambda z: joint(z, x) / p)
    right = quadrature(lambda z: joint(z, x) / p * (z > 0))
    assert (total, right) == (pytest.approx(1, abs=1e-10), pytest.approx(0.5, abs=1e-10))


@pytest.mark.equation("eq-elbo-gap")
@OBSERVATIONS
@BELLS
def test_gap_is_the_divergence_from_the_posterior(x, loc, scale):
    log_p = math.log(evidence(x))

    def integrand(t: np.ndarray) -> np.ndarray:
        z = loc + scale * t
        log_posterior = stats.norm.logpdf(z) + stats.norm.logpdf(x, z**2, SCALE) - log_p
        return stats.norm.pdf(t) * (stats.norm.logpdf(z, loc, scale) - log_posterior)

    gap = quadrature(integrand)
    assert gap > 0
    assert exact_elbo(x, loc, scale) + gap == pytest.approx(log_p, abs=1e-9)


def test_one_bell_for_two_peaks_misses_one_bit():
    """With little noise, the best q covers one arm, and the gap tends to log 2."""
    gaps = {}
    for scale in (0.3, 0.05):
        # the peak near sqrt(1.5) is a bell of scale about noise / slope
        z = np.linspace(0, 4, 40_001)
        log_joint = stats.norm.logpdf(z) + stats.norm.logpdf(1.5, z**2, scale)
        log_p = math.log(2 * np.trapezoid(np.exp(log_joint), z))
        mode, width = math.sqrt(1.5), scale / (2 * math.sqrt(1.5))
        log_q = stats.norm.logpdf(z, mode, width)
        gaps[scale] = np.trapezoid(np.exp(log_q) * (log_q - log_joint + log_p), z)
    assert gaps[0.3] > gaps[0.05] > math.log(2)
    assert gaps[0.05] == pytest.approx(math.log(2), abs=0.01)


# --- gradients through draws -----------------------------------------------------------------------------


@pytest.mark.equation("eq-score-function")
@pytest.mark.parametrize(("loc", "scale"), [(0.7, 0.4), (1.2, 0.1), (0.0, 2.0)])
def test_score_function_estimates_the_gradient_of_the_mean_square(loc, scale):
    q = torch.distributions.Normal(torch.tensor(loc, dtype=F64), scale)
    z = q.sample((400_000,))
    score = torch.func.grad(lambda m, v: torch.distributions.Normal(m, scale).log_prob(v))
    by_loc = torch.vmap(score, in_dims=(None, 0))(torch.tensor(loc, dtype=F64), z)
    assert_mean_is(z.square() * by_loc, 2 * loc)


@pytest.mark.equation("eq-reparameterisation")
@BELLS
def test_reparameterised_gradient_of_the_elbo_matches_finite_difference(loc, scale):
    """E_eps of the pathwise gradient, by Gauss-Hermite quadrature, which is exact for polynomials."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(8))
    weights = weights / math.sqrt(2 * math.pi)
    m = torch.tensor(loc, dtype=F64, requires_grad=True)
    z = (m + scale * nodes)[:, None]
    (weights @ gaussian_nll(single(1.5, 8), z.square(), SCALE)).backward()
    kl_gradient, step = loc, 1e-4
    finite = (exact_elbo(1.5, loc + step, scale) - exact_elbo(1.5, loc - step, scale)) / (2 * step)
    assert -m.grad.item() - kl_gradient == pytest.approx(finite, rel=1e-5, abs=1e-5)


@pytest.mark.equation("eq-gradient-variances")
@pytest.mark.parametrize(("loc", "scale"), [(0.7, 0.4), (1.2, 0.05), (0.0, 2.0), (-3.0, 1.0)])
def test_variances_of_both_gradient_estimators(loc, scale):
    """By Gauss-Hermite quadrature, exact up to polynomials of degree 23."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    weights = weights / math.sqrt(2 * math.pi)
    for draws, variance in [
        (2 * (loc + scale * nodes), 4 * scale**2),
        ((loc + scale * nodes) ** 2 * nodes / scale, loc**4 / scale**2 + 14 * loc**2 + 15 * scale**2),
    ]:
        mean = weights @ draws
        assert mean == pytest.approx(2 * loc, abs=1e-10)
        assert weights @ draws**2 - mean**2 == pytest.approx(variance, rel=1e-9)


# --- the linear model ------------------------------------------------------------------------------------


@pytest.mark.equation("eq-linear-vae")
def test_linear_vae_draws_have_the_moments_of_its_evidence():
    torch.manual_seed(0)
    model = LinearVAE(data_dim=4, latent_dim=2, scale=0.5).double()
    z = torch.randn(200_000, 2, dtype=F64, generator=generator())
    with torch.no_grad():
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
def test_likelihood_is_below_the_bound_by_eigenvalues(digits_x, seed):
    torch.manual_seed(seed)
    model = LinearVAE(64, 5, scale=0.3).double()
    with torch.no_grad():
        model.decoder.bias.copy_(digits_x.mean(0))
        assert model.log_likelihood(digits_x).mean().item() < bound_by_eigenvalues(model, digits_x)


@pytest.mark.equation("eq-ppca-bound")
@pytest.mark.parametrize("variance", [0.1, 0.5])
def test_likelihood_attains_the_bound_with_the_eigenvectors_of_the_data(digits_x, variance):
    model = LinearVAE.from_ppca(digits_x, 5, scale=math.sqrt(variance))
    with torch.no_grad():
        found = model.log_likelihood(digits_x).mean().item()
        assert found == pytest.approx(bound_by_eigenvalues(model, digits_x), rel=1e-10)


def maximise(model: LinearVAE, x: Tensor, num_steps: int) -> float:
    """Climb the exact ELBO from where the model is; return the ELBO reached."""
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=num_steps, line_search_fn="strong_wolfe")

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = -model.exact_elbo_terms(x).elbo().mean()
        loss.backward()
        return loss

    optimizer.step(evaluate)
    with torch.no_grad():
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


def gain_over_constant(x: Tensor, decode, variance: float) -> tuple[float, float]:
    """Both sides of Eq. (eq-any-decoder), the expectation over 400 codes taken as the prior itself."""
    g = decode(torch.randn(400, 1, 2, dtype=F64, generator=generator()))[:, 0]  # (codes, D)
    delta = x - x.mean(0)
    exponent = (delta @ g.T - 0.5 * g.square().sum(1)) / variance  # (N, codes)
    left = (exponent.logsumexp(1) - math.log(400)).mean().item()
    slack = 1 - x.shape[1] / (4 * variance)
    right = (-g.square().sum(1) / (2 * variance) * slack).logsumexp(0).item() - math.log(400)
    return left, right


@pytest.mark.equation("eq-any-decoder")
@pytest.mark.parametrize("variance", [4.0, 16.0, 32.0])
@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_evidence_of_any_decoder_obeys_the_bound(digits_x, variance, size):
    torch.manual_seed(0)
    network = mlp([2, 30, 64]).double()
    with torch.no_grad():
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
    loc, scale = (torch.tensor(values, dtype=F64)[:, None] for values in (locs, scales))
    total = kl_standard_normal(loc, scale.log()).mean().item()
    parts = list(zip(locs, scales, strict=True))

    def log_aggregate(z: np.ndarray) -> np.ndarray:
        return np.logaddexp.reduce([stats.norm.logpdf(z, m, s) for m, s in parts]) - math.log(len(parts))

    def information(z: np.ndarray) -> np.ndarray:
        logs = [stats.norm.logpdf(z, m, s) for m, s in parts]
        return sum(np.exp(v) * (v - log_aggregate(z)) for v in logs) / len(parts)

    def marginal(z: np.ndarray) -> np.ndarray:
        return np.exp(log_aggregate(z)) * (log_aggregate(z) - stats.norm.logpdf(z))

    return total, quadrature(information), quadrature(marginal)


@pytest.mark.equation("eq-elbo-surgery")
@pytest.mark.equation("eq-information-limit")
@pytest.mark.parametrize(
    ("locs", "scales"),
    [([-3, 0, 3], [0.2] * 3), ([-1.5, 0.2, 1.4], [0.4, 0.3, 0.5]), ([0, 0, 0], [1.0] * 3)],
    ids=["apart", "uneven", "prior"],
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
    a, c = torch.ones(3, dtype=F64, requires_grad=True), torch.zeros(3, dtype=F64, requires_grad=True)
    z = (a * loc + c) + a * log_scale.exp() * eps
    nll = vae.likelihood.nll(x, vae.decode((z - c) / a))
    loss = (nll + kl_standard_normal(a * loc + c, log_scale + a.log())).mean()
    by_scale, by_shift = torch.autograd.grad(loss, (a, c))
    torch.testing.assert_close(by_scale, (loc.square() + (2 * log_scale).exp()).mean(0) - 1)
    torch.testing.assert_close(by_shift, loc.mean(0))
    assert by_scale.abs().min() > 0.01 and by_shift.abs().min() > 0.01  # this model is at no optimum


@pytest.mark.equation("eq-aggregate-moments")
@pytest.mark.parametrize("beta", [0.05, 1.0, 5.0])
def test_aggregate_posterior_of_the_optimum_has_the_moments_of_the_prior(digits_x, beta):
    loc, log_scale = LinearVAE.from_ppca(digits_x, 8, scale=0.3, beta=beta).encode(digits_x)
    second = (loc.square() + (2 * log_scale).exp()).mean(0)
    torch.testing.assert_close(loc.mean(0), torch.zeros(8, dtype=F64), rtol=0, atol=1e-9)
    torch.testing.assert_close(second, torch.ones(8, dtype=F64))


# --- the tighter bound -----------------------------------------------------------------------------------


@pytest.mark.equation("eq-importance-weighted-bound")
def test_importance_weighted_bound_of_two_samples_matches_quadrature():
    """L_2 is an integral over two draws, done here on a grid."""
    x, loc, scale = 1.5, 1.0, 0.4
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    z = loc + scale * nodes
    log_w = stats.norm.logpdf(z) + stats.norm.logpdf(x, z**2, SCALE) - stats.norm.logpdf(z, loc, scale)
    pair = np.logaddexp(log_w[:, None], log_w) - math.log(2)
    expected = weights @ pair @ weights / (2 * math.pi)
    draws = importance_weighted_bound(
        PowerModel(loc, scale), single(x, 200_000), num_samples=2, generator=generator()
    )
    assert_mean_is(draws, expected)
    assert exact_elbo(x, loc, scale) < expected < math.log(evidence(x))


def test_importance_weighted_bound_of_a_bell_on_one_arm_stops_one_bit_short():
    bell = PowerModel(1.19, 0.126)
    bound = importance_weighted_bound(bell, single(1.5), num_samples=100_000, generator=generator()).item()
    assert math.log(evidence(1.5)) - bound == pytest.approx(math.log(2), abs=0.02)


# --- numbers that the exercises name ---------------------------------------------------------------------


def test_exercise_clamped_log_variance_costs_two_nats():
    kl = kl_standard_normal(torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64))  # log-variance 2
    assert kl.item() == pytest.approx((math.e**2 - 3) / 2)
    assert kl.item() == pytest.approx(2.19, abs=0.005)


def test_exercise_posteriors_as_wide_as_the_prior_shrink_the_decoder(digits_x):
    """With d_j held at 1 the best column has the squared norm sigma * sqrt(lambda_j) - sigma**2."""
    scale = 0.2
    torch.manual_seed(0)
    model = LinearVAE(64, 3, scale=scale).double()
    model.encoder.log_scale.requires_grad_(False).zero_()
    maximise(model, digits_x, 300)
    found = torch.linalg.svdvals(model.weight.detach()).square()
    expected = scale * eigenvalues_of(digits_x)[:3].sqrt() - scale**2
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


def test_exercise_two_meanings_of_the_log_variance_can_exceed_the_log_evidence(digits_x):
    """KL for scale exp(l / 2), codes of scale exp(l): for narrow posteriors the sum is above log p(x)."""
    model = LinearVAE.from_ppca(digits_x, 5, scale=0.2)
    paid = model.exact_elbo_terms(digits_x).kl
    with torch.no_grad():
        model.encoder.log_scale.mul_(2)  # the codes that are drawn
        sum_of_both = (-model.exact_elbo_terms(digits_x).nll - paid).mean()
        assert sum_of_both > model.log_likelihood(digits_x).mean() + 0.5


@pytest.mark.parametrize(("ratio", "is_finite"), [(0.75, True), (0.65, False)])
def test_exercise_narrow_proposals_have_weights_of_infinite_variance(ratio, is_finite):
    def square(z: float) -> float:  # weight squared times q, with p = N(0, 1) and q = N(0, ratio**2)
        return math.exp(2 * stats.norm.logpdf(z) - stats.norm.logpdf(z, 0, ratio))

    areas = [integrate.quad(square, -reach, reach, limit=200)[0] for reach in (10, 20)]
    assert (areas[1] / areas[0] < 1.01) == is_finite


def test_single_draws_of_a_divergence_may_be_negative():
    draws = kl_monte_carlo(
        torch.full((1, 1), 0.7, dtype=F64),
        torch.full((1, 1), math.log(0.4), dtype=F64),
        num_samples=400_000,
        generator=generator(),
    )
    share = (draws < 0).double().ravel()
    # log q < log p where (z - 0.7)^2 / 0.16 - z^2 > -2 log 0.4, outside the two roots of a quadratic
    roots = np.roots([1 / 0.16 - 1, -1.4 / 0.16, 0.49 / 0.16 + 2 * math.log(0.4)])
    q = stats.norm(0.7, 0.4)
    assert_mean_is(share, q.cdf(roots.min()) + q.sf(roots.max()))
