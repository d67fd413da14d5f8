"""The equations of the fourth chapter, each against an oracle that does not contain its formula."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, optimize, special, stats
from torch.nn.functional import binary_cross_entropy_with_logits as with_logits

from tests.book.oracles import F64, assert_mean, column, generator, hermite, smallest
from vaecourse.datasets import binarize, digits, mnist
from vaecourse.densities import bernoulli_nll, continuous_bernoulli_nll, laplace_nll
from vaecourse.likelihoods import ContinuousBernoulliLikelihood
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import elbo_terms, importance_weighted_bound, negative_elbo

IMAGES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=F64)  # all 16 of four pixels
GREY = torch.tensor([[0.2, 0.6, 0.9, 0.35]], dtype=F64)
LOGITS = torch.tensor([[-1.3, 0.4, 2.2, -0.1]], dtype=F64)
LEVELS = pytest.mark.parametrize("x", [0.02, 0.3, 0.5, 0.97])
SIMPLE = pytest.mark.parametrize("a", [-6.0, -0.7, 0.3, 4.0])


def bce(x: float, rho: float) -> float:
    """Cross-entropy of one pixel, as the package computes it."""
    return bernoulli_nll(column(x), column(rho).logit()).item()


def formula(x: float, a: float) -> float:
    """What BCE of a grey pixel is the negative logarithm of."""
    return math.exp(-bernoulli_nll(column(x), column(a)).item())


def area(a: float) -> float:
    return integrate.quad(formula, 0, 1, args=(a,), epsabs=1e-12)[0]


def image_probabilities(rho: np.ndarray) -> np.ndarray:
    """Probabilities (..., 16) of all images under independent pixels (..., 4), by scipy."""
    return stats.bernoulli.pmf(IMAGES.numpy(), rho[..., None, :]).prod(-1)


def small_vae(latent_dim: int = 1) -> VAE:
    torch.manual_seed(0)
    return mlp_vae(4, latent_dim, hidden_dims=(5,)).double()


# --- a pixel that is black or white ----------------------------------------------------------------------


@pytest.mark.equation("eq-bernoulli-pmf", "eq-bce")
def test_bce_is_the_negative_logarithm_of_the_probability_with_which_images_are_drawn():
    values = bernoulli_nll(IMAGES, LOGITS.expand(16, 4)).numpy()
    assert (values >= 0).all()
    np.testing.assert_allclose(values, -np.log(image_probabilities(special.expit(LOGITS[0].numpy()))), 1e-12)
    assert np.exp(-values).sum() == pytest.approx(1, abs=1e-14)
    draws = torch.bernoulli(torch.sigmoid(LOGITS).expand(400_000, 4), generator=generator())
    counts = torch.bincount((draws @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=F64)).long(), minlength=16)
    assert stats.chisquare(counts.numpy(), 400_000 * np.exp(-values)).pvalue > 1e-4


@pytest.mark.equation("eq-bernoulli-elbo")
@torch.no_grad()
def test_bernoulli_elbo_matches_quadrature_over_the_code():
    vae, x = small_vae(), IMAGES[6:7]
    nodes, weights = hermite(60)
    loc, scale = vae.encode(x)[0].item(), vae.encode(x)[1].exp().item()
    z = loc + scale * nodes
    log_lik = stats.bernoulli.logpmf(x.numpy(), special.expit(vae.decode(column(*z)).numpy())).sum(1)
    expected = weights @ (log_lik - stats.norm.logpdf(z, loc, scale) + stats.norm.logpdf(z))
    found = elbo_terms(vae, x, num_samples=200_000, generator=generator()).elbo().item()
    assert found == pytest.approx(expected, abs=5e-3)


@pytest.mark.equation("eq-bernoulli-elbo")
@torch.no_grad()
def test_bernoulli_elbo_is_below_the_log_probability_of_every_image():
    vae, (nodes, weights) = small_vae(), hermite(60)
    probabilities = weights @ image_probabilities(special.expit(vae.decode(column(*nodes)).numpy()))
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    elbo = elbo_terms(vae, IMAGES, num_samples=20_000, generator=generator()).elbo()
    assert (elbo.numpy() < np.log(probabilities)).all()
    tight = importance_weighted_bound(vae, IMAGES, num_samples=20_000, generator=generator())
    assert tight.exp().sum().item() == pytest.approx(1, abs=0.02)  # all 16 images


@pytest.mark.equation("eq-weighted-bce")
@pytest.mark.parametrize("rho", [0.1, 0.5, 0.83])
def test_weighted_bce_is_no_bernoulli_nll(rho):
    """The weight at which the two pixels' values add up to 1 is found by a root search: it is 1."""

    def total(weight: float) -> float:
        return sum(math.exp(-weight * bce(x, rho)) for x in (0.0, 1.0))

    assert optimize.brentq(lambda weight: total(weight) - 1, 0.05, 20) == pytest.approx(1, abs=1e-9)
    for weight in (0.3, 2.5):
        assert total(weight) == pytest.approx(rho**weight + (1 - rho) ** weight)


@pytest.mark.equation("eq-bce-minimiser")
@pytest.mark.parametrize("values", [[0.0, 0.0, 1.0], [0.1, 0.2, 0.9], [0.5, 1.0, 0.3]], ids=str)
def test_bce_minimiser_is_the_mean(values):
    x = column(*values)
    found = smallest(lambda a: bernoulli_nll(x, torch.full_like(x, a)).sum().item(), -8, 8)
    assert special.expit(found.x) == pytest.approx(np.mean(values), abs=1e-4)


# --- logits ----------------------------------------------------------------------------------------------


@pytest.mark.equation("eq-bce-logits")
@pytest.mark.parametrize("x", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("a", [-40.0, -17.0, -1.0, 0.5, 20.0, 90.0])
def test_bce_from_logits_matches_mpmath(x, a):
    with mpmath.workdps(80):
        rho = 1 / (1 + mpmath.exp(-mpmath.mpf(a)))
        truth = -mpmath.mpf(x) * mpmath.log(rho) - (1 - mpmath.mpf(x)) * mpmath.log(1 - rho)
        short = mpmath.log1p(mpmath.exp(mpmath.mpf(a))) - mpmath.mpf(x) * a
        assert mpmath.almosteq(truth, short, rel_eps=mpmath.mpf("1e-30"))
        assert bernoulli_nll(column(x), column(a)).item() == pytest.approx(float(truth), rel=1e-14)


def library_bce(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The library's loss behind a sigmoid."""
    return F.binary_cross_entropy(torch.sigmoid(a), x)


def short_bce(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.softplus(a) - x * a


@pytest.mark.parametrize(
    ("form", "x", "a"),
    [(library_bce, 0.0, 17.0), (library_bce, 1.0, 17.0), (with_logits, 0.0, -17.0), (short_bce, 1.0, 17.0)],
)
def test_shortcuts_lose_every_digit_in_float32(form, x, a):
    truth = float(mpmath.log1p(mpmath.exp(a if x == 0 else -a)))
    x32, a32 = torch.tensor([[x]]), torch.tensor([[a]])
    assert abs(form(a32, x32).item() / truth - 1) > 0.99
    assert bernoulli_nll(x32, a32).item() == pytest.approx(truth, rel=1e-6)


def library_value_and_slope(a: float, x: float) -> tuple[float, float]:
    logits = torch.tensor([a], requires_grad=True)
    value = library_bce(logits, torch.tensor([x]))
    value.backward()
    return value.item(), logits.grad.item()


@pytest.mark.parametrize(("x", "a"), [(0.0, 17.0), (0.0, 60.0), (1.0, -120.0)])
def test_library_clamps_value_at_100_and_loses_the_gradient(x, a):
    assert library_value_and_slope(a, x) == (100, 0)


@pytest.mark.parametrize("a", [-30.0, -40.0, -60.0])
def test_library_gradient_fades_where_rho_is_below_its_floor(a):
    value, slope = library_value_and_slope(a, 1.0)
    assert value == pytest.approx(-a, rel=1e-6)  # right, while the gradient should be -1
    assert slope == pytest.approx(-math.exp(a) / 1e-12, rel=1e-3)


# --- gradients -------------------------------------------------------------------------------------------


@pytest.mark.equation("eq-bce-gradient", "eq-squared-error-logit")
@LEVELS
@SIMPLE
def test_bce_gradient_is_prediction_minus_target_and_that_of_a_squared_error_vanishes(x, a):
    """The difference quotients are taken by mpmath, of the definitions in probabilities."""

    def quotient(loss):
        return float(mpmath.diff(lambda t: loss(1 / (1 + mpmath.exp(-t))), a))

    logits, rho = column(a).requires_grad_(), special.expit(a)
    losses = bernoulli_nll(column(x), logits).sum(), 0.5 * (torch.sigmoid(logits) - x).square().sum()
    slopes = [torch.autograd.grad(loss, logits)[0].item() for loss in losses]
    assert slopes == pytest.approx([rho - x, (rho - x) * rho * (1 - rho)], abs=1e-12)
    nll = quotient(lambda rho: -x * mpmath.log(rho) - (1 - x) * mpmath.log(1 - rho))
    assert slopes[0] == pytest.approx(nll, abs=1e-10)
    assert slopes[1] == pytest.approx(quotient(lambda rho: (rho - x) ** 2 / 2), abs=1e-12)


@pytest.mark.equation("eq-exponential-family")
@SIMPLE
def test_exponential_family_form_gives_both_distributions(a):
    sigma = 0.5
    for x in (-0.4, 0.3, 1.7):  # A = sigma**2 a**2 / 2, h = the density at mean 0
        value = 0.5 * sigma**2 * a**2 - a * x - stats.norm.logpdf(x, 0, sigma)
        assert value == pytest.approx(-stats.norm.logpdf(x, sigma**2 * a, sigma), rel=1e-12)
    for x in (0, 1):  # A = softplus, h = 1
        assert np.logaddexp(0, a) - a * x == pytest.approx(-stats.bernoulli.logpmf(x, special.expit(a)))


@pytest.mark.equation("eq-mean-minus-target")
@SIMPLE
def test_derivatives_of_the_log_partition_are_mean_and_variance(a):
    """A is the log of the sum or integral of h exp(ax): differenced here, moments by scipy and torch."""
    sigma, step, (nodes, weights) = 0.5, 1e-3, np.polynomial.legendre.leggauss(80)
    bernoulli = stats.bernoulli(special.expit(a))
    continuous = torch.distributions.ContinuousBernoulli(logits=torch.tensor(a, dtype=F64))
    for points, h, mean, variance in [
        (np.array([0.0, 1.0]), np.ones(2), bernoulli.mean(), bernoulli.var()),
        (6 * nodes, weights * stats.norm.pdf(6 * nodes, 0, sigma), sigma**2 * a, sigma**2),
        (0.5 + 0.5 * nodes, weights, continuous.mean.item(), continuous.variance.item()),
    ]:
        low, middle, high = (special.logsumexp((a + t) * points, b=h) for t in (-step, 0, step))
        found = [(high - low) / (2 * step), (high - 2 * middle + low) / step**2]
        assert found == pytest.approx([mean, variance], rel=1e-5)


@pytest.mark.equation("eq-escape-times")
@pytest.mark.parametrize("s", [0.5, 2.0, 6.0])
def test_escape_times_match_the_integral_of_the_pace_of_a_gradient_flow(s):
    """At the target 1 from -s to 0; the speed is a slope by autograd of the loss itself."""

    def time(loss) -> float:
        def pace(value: float) -> float:
            a = torch.tensor(value, dtype=F64, requires_grad=True)
            return -1 / torch.autograd.grad(loss(a), a)[0].item()

        return integrate.quad(pace, -s, 0, epsrel=1e-9)[0]

    assert time(lambda a: F.softplus(-a)) == pytest.approx(s + 1 - math.exp(-s), rel=1e-6)
    expected = math.exp(s) + 3 * s + 2.5 - 3 * math.exp(-s) - 0.5 * math.exp(-2 * s)
    assert time(lambda a: 0.5 * (1 - torch.sigmoid(a)) ** 2) == pytest.approx(expected, rel=1e-6)


# --- grey pixels -----------------------------------------------------------------------------------------


@pytest.mark.equation("eq-pixel-entropy")
@pytest.mark.parametrize(
    ("data", "max_level", "nats"), [("train", 255, 45.7568), ("test", 255, 45.5345), ("digits", 16, 13.658)]
)
def test_pixel_entropy_of_the_data_sets_matches_scipy(data, max_level, nats):
    images, _ = digits() if data == "digits" else mnist(data)
    counts = torch.bincount(images.flatten(), minlength=max_level + 1).numpy()
    entropy = stats.bernoulli.entropy(np.arange(max_level + 1) / max_level)
    assert counts @ entropy / len(images) == pytest.approx(nats, abs=5e-4)


@pytest.mark.equation("eq-entropy-floor")
@LEVELS
@pytest.mark.parametrize("rho", [0.01, 0.4, 0.9])
def test_bce_is_entropy_plus_divergence(x, rho):
    divergence = special.rel_entr(x, rho) + special.rel_entr(1 - x, 1 - rho)
    assert bce(x, rho) == pytest.approx(stats.bernoulli.entropy(x) + divergence, rel=1e-12)
    assert bce(x, x) == pytest.approx(float(stats.bernoulli.entropy(x)), rel=1e-12)


@pytest.mark.equation("eq-grey-linear")
def test_grey_bce_is_the_average_over_all_binary_images_and_over_drawn_ones():
    grey = bernoulli_nll(GREY, LOGITS).item()
    average = image_probabilities(GREY[0].numpy()) @ bernoulli_nll(IMAGES, LOGITS.expand(16, 4)).numpy()
    assert grey == pytest.approx(average, rel=1e-12)
    draws = binarize(GREY.expand(200_000, 4), generator=generator())
    assert_mean(bernoulli_nll(draws, LOGITS.expand(200_000, 4)), grey)


@pytest.mark.equation("eq-grey-chain", "eq-grey-gap")
@pytest.mark.parametrize("seed", range(5))
def test_grey_chain_is_ordered_by_average_divergences_and_its_first_step_closes(seed):
    """Three codes for images of four pixels, enumerated with scipy's probabilities."""
    rng = np.random.default_rng(seed)
    rho = special.expit(2 * rng.normal(size=(3, 4)))
    prior, own_q = rng.dirichlet(np.ones(3), size=2)
    likelihood, weights = image_probabilities(rho), image_probabilities(GREY[0].numpy())  # (codes, images)
    losses = bernoulli_nll(GREY.expand(3, 4), torch.tensor(special.logit(rho))).numpy()

    def grey_elbo(q: np.ndarray) -> float:
        """From the package's BCE of grey pixels, as training code computes it."""
        return float(-(q @ losses) - special.rel_entr(q, prior).sum())

    middle, top = math.log(prior @ np.exp(np.log(likelihood) @ weights)), weights @ np.log(prior @ likelihood)
    assert grey_elbo(own_q) < middle < top
    posteriors = prior[:, None] * likelihood / (prior @ likelihood)  # of the draws
    divergences = special.rel_entr(own_q[:, None], posteriors).sum(0)
    assert top - grey_elbo(own_q) == pytest.approx(weights @ divergences, rel=1e-10)
    found = optimize.minimize(lambda t: -grey_elbo(special.softmax(t)), np.zeros(3), tol=1e-12)
    assert -found.fun == pytest.approx(middle, abs=1e-8)  # the best q, found by search
    # one code, which is a decoder that ignores it: the chain is an equality
    assert -losses[0] == pytest.approx(weights @ np.log(likelihood[0]), rel=1e-12)


# --- the continuous Bernoulli ----------------------------------------------------------------------------


@pytest.mark.equation("eq-not-a-density", "eq-continuous-bernoulli")
@pytest.mark.parametrize("a", [-30.0, -6.0, -3.0, -0.7, 1e-3, 0.3, 0.5, 4.0, 12.0])
def test_area_under_the_formula_is_not_one_and_its_inverse_is_a_normalizer_of_at_least_two(a):
    def density(x):
        return math.exp(-continuous_bernoulli_nll(column(x), column(a)).item())

    assert area(a) == pytest.approx(float(mpmath.tanh(mpmath.mpf(a) / 2) / a), rel=1e-8)
    assert area(a) <= 0.5 + 1e-12
    assert integrate.quad(density, 0, 1)[0] == pytest.approx(1, abs=1e-8)
    normalizer = density(0.4) / formula(0.4, a)
    assert normalizer == pytest.approx(1 / area(a), rel=1e-8)
    assert normalizer >= 2


@pytest.mark.equation("eq-continuous-elbo")
@torch.no_grad()
def test_continuous_elbo_exceeds_the_grey_elbo_by_the_normalizers():
    vae = small_vae(2)
    loc, log_scale = vae.encode(GREY)
    logits = vae.decode(loc + log_scale.exp() * torch.randn(1, 2, generator=generator(), dtype=F64))
    grey = negative_elbo(vae, GREY, generator=generator())
    vae.likelihood = ContinuousBernoulliLikelihood()
    gain = (grey - negative_elbo(vae, GREY, generator=generator())).item()
    assert gain == pytest.approx(sum(-math.log(area(a)) for a in logits[0].tolist()), rel=1e-7)
    assert gain >= 4 * math.log(2)


@pytest.mark.equation("eq-continuous-mean")
@pytest.mark.parametrize("a", [-200.0, -6.0, -0.7, 0.02, 3.0])
def test_continuous_mean_matches_quadrature(a):
    with mpmath.workdps(30):
        points = [0, min(1, 10 / abs(a)), 1] if a < 0 else [0, 1]
        mass, moment = (mpmath.quad(lambda x, n=n: x**n * mpmath.exp(a * x), points) for n in (0, 1))
        truth = float(moment / mass)
    assert ContinuousBernoulliLikelihood().mean(column(a)).item() == pytest.approx(truth, rel=1e-9)
    assert 0.5 + 0.5 / math.tanh(a / 2) - 1 / a == pytest.approx(truth, rel=1e-9)


def test_continuous_density_of_a_black_pixel_is_unbounded():
    for a in (-10.0, -1e3):
        value = -continuous_bernoulli_nll(column(0.0), column(a)).item()
        assert value == pytest.approx(math.log(a / math.expm1(a)), rel=1e-9)


@pytest.mark.equation("eq-bce-score")
@pytest.mark.parametrize("rho", [0.05, 0.4, 0.8])
@pytest.mark.parametrize("total", [1.5, 30.0])
def test_expected_bce_depends_on_the_mean_alone(rho, total):
    """Beta variables of mean 0.3 and different width have the same expected loss, by Gauss-Jacobi rules."""
    nodes, weights = special.roots_sh_jacobi(20, total - 1, 0.3 * total)
    found = np.average([bce(x, rho) for x in nodes], weights=weights)
    expected = stats.bernoulli.entropy(0.3) + special.rel_entr(0.3, rho) + special.rel_entr(0.7, 1 - rho)
    assert found == pytest.approx(expected, abs=1e-6)


# --- the bridge and the rule -----------------------------------------------------------------------------


@pytest.mark.equation("eq-pinsker-bridge")
def test_bce_above_its_floor_exceeds_the_squared_error_of_variance_one_quarter_and_of_no_smaller():
    x, rho = (a.ravel() for a in np.meshgrid(np.linspace(0, 1, 101), np.linspace(0.001, 0.999, 333)))
    excess = bernoulli_nll(column(*x), column(*special.logit(rho))).numpy() - stats.bernoulli.entropy(x)
    gaussian = -stats.norm.logpdf(x, rho, 0.5) + stats.norm.logpdf(0, 0, 0.5)
    assert (excess - gaussian).min() > -1e-12
    # at a half the bound is tight to second order: with any smaller variance it would fail
    tight = bce(0.5, 0.5 + 1e-3) - bce(0.5, 0.5)
    assert tight * 0.5 / 1e-6 == pytest.approx(1, rel=1e-5)
    assert tight < 1e-6 / (2 * 0.2499)


@pytest.mark.equation("eq-local-variance")
@pytest.mark.parametrize("rho", [0.01, 0.2, 0.5, 0.9])
def test_bce_is_locally_a_gaussian_of_the_coins_variance(rho):
    variance = stats.bernoulli.var(rho)
    d2 = mpmath.diff(lambda x: x * mpmath.log(x / rho) + (1 - x) * mpmath.log((1 - x) / (1 - rho)), rho, 2)
    assert float(d2) == pytest.approx(1 / variance, rel=1e-6)
    step = 1e-3 * min(rho, 1 - rho)
    excess = bce(rho + step, rho) - bce(rho + step, rho + step)
    assert excess == pytest.approx(step**2 / (2 * variance), rel=2e-3)


def mean_log_evidence(images: np.ndarray, direction: np.ndarray) -> float:
    """Average log P(x) of a decoder with logits logit(mean) + direction * z, by quadrature over z."""
    nodes, weights = hermite(80)
    logits = special.logit(images.mean(0)) + nodes[:, None] * direction  # (nodes, pixels)
    log_lik = images @ logits.T - np.logaddexp(0, logits).sum(1)  # (images, nodes)
    return float(special.logsumexp(log_lik, b=weights, axis=1).mean())


def grey_images(strength: float) -> np.ndarray:
    """Images of four grey pixels that share a cause of this strength."""
    rng = np.random.default_rng(1)
    cause, own = rng.normal(size=(300, 1)), rng.normal(size=(300, 4))
    return special.expit(strength * cause + own - 0.5)


def excess_covariance(images: np.ndarray, beta: float = 1.0) -> np.ndarray:
    """The covariance less beta times that of coins with these means."""
    return np.cov(images.T, bias=True) - beta * np.diag(stats.bernoulli.var(images.mean(0)))


@pytest.mark.equation("eq-collapse-curvature")
@pytest.mark.parametrize("strength", [0.3, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_evidence_near_collapse_has_the_predicted_curvature(strength, seed):
    images, direction = grey_images(strength), np.random.default_rng(seed).normal(size=4)
    low, middle, high = (mean_log_evidence(images, step * direction) for step in (0, 0.02, 0.04))
    # the next term is of fourth order
    found = (4 * (middle - low) / 0.02**2 - (high - low) / 0.04**2) / 3
    predicted = 0.5 * direction @ excess_covariance(images) @ direction
    assert found == pytest.approx(predicted, rel=1e-3, abs=1e-6)


@pytest.mark.equation("eq-collapse-curvature")
@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_best_weighted_elbo_near_collapse_has_the_predicted_curvature(beta):
    """With weight beta: the best normal q of each image by search, expectations by quadrature."""
    images = grey_images(3.0)[:12]
    direction = 0.05 * np.array([1.0, 0.8, -0.3, 0.6])
    nodes, weights = hermite(40)

    def loss(q, x, w):
        loc, log_scale = q
        logits = special.logit(images.mean(0)) + (loc + math.exp(log_scale) * nodes[:, None]) * w
        kl = 0.5 * (loc**2 + math.exp(2 * log_scale) - 1) - log_scale
        return beta * kl - weights @ (logits @ x - np.logaddexp(0, logits).sum(1))

    start = np.zeros(2)
    at_start = [loss(start, x, 0 * direction) for x in images]
    best = [optimize.minimize(loss, start, args=(x, direction), tol=1e-12).fun for x in images]
    predicted = direction @ excess_covariance(images, beta) @ direction / (2 * beta)
    assert np.mean(at_start) - np.mean(best) == pytest.approx(predicted, rel=0.02)


def test_binary_data_with_correlated_pixels_always_leave_collapse():
    images = (grey_images(0.5) > 0.5).astype(float)
    excess = excess_covariance(images)
    assert np.trace(excess) == pytest.approx(0, abs=1e-12)
    values, vectors = np.linalg.eigh(excess)
    assert values[-1] > 0
    assert mean_log_evidence(images, 0.1 * vectors[:, -1]) > mean_log_evidence(images, 0 * vectors[:, -1])


@pytest.mark.parametrize(("claimed", "count"), [(1.0, 0), (0.25, 5), (None, 7)])
def test_growing_directions_of_the_digits(digits_x, claimed, count):
    x = digits_x[:, digits_x.amax(0) > 0].numpy()
    variance = stats.bernoulli.var(x.mean(0)) if claimed is None else np.full(x.shape[1], claimed)
    assert (np.linalg.eigvalsh(np.cov(x.T, bias=True) - np.diag(variance)) > 0).sum() == count


# --- other likelihoods -----------------------------------------------------------------------------------


@pytest.mark.equation("eq-laplace-decoder")
@pytest.mark.parametrize("scale", [0.1, 6.144])
def test_laplace_decoder_matches_scipy(scale):
    expected = -stats.laplace.logpdf(GREY.numpy(), LOGITS.numpy(), scale).sum()
    assert laplace_nll(GREY, LOGITS, scale).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("x", [-0.4, 2.5])
def test_bce_outside_the_unit_interval_is_unbounded(x):
    a = column(1e3 if x > 1 else -1e3)
    assert with_logits(a, torch.full_like(a, x)).item() < -300
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        bernoulli_nll(column(x), column(0.0))


def test_taylor_series_in_the_probability_is_off_by_half_a_nat():
    def series(t):
        return math.log(2) + 4 / 3 * t**2 + 104 / 45 * t**4

    exact = -math.log(area(float(special.logit(0.505))))
    assert series(0.505 - 0.5) == pytest.approx(exact, abs=1e-9)
    assert series(0.505) - exact == pytest.approx(0.478, abs=0.02)
    assert series(0.5) - math.log(2) == pytest.approx(0.4778, abs=1e-4)
