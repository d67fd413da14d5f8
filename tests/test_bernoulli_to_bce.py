"""The equations of the fourth chapter, each against an oracle that does not contain its formula."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, optimize, special, stats
from torch import Tensor

from vaecourse.datasets import binarize, digits, mnist, to_unit_interval
from vaecourse.densities import bernoulli_nll, continuous_bernoulli_nll, laplace_nll
from vaecourse.likelihoods import ContinuousBernoulliLikelihood
from vaecourse.models import mlp_vae
from vaecourse.objectives import elbo_terms, importance_weighted_bound, negative_elbo

F64 = torch.float64
IMAGES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=F64)  # all 16 of four pixels
GREY = torch.tensor([[0.2, 0.6, 0.9, 0.35]], dtype=F64)
LOGITS = torch.tensor([[-1.3, 0.4, 2.2, -0.1]], dtype=F64)
LEVELS = pytest.mark.parametrize("x", [0.02, 0.3, 0.5, 0.97])
SIMPLE = pytest.mark.parametrize("a", [-6.0, -0.7, 0.3, 4.0])


def one(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=F64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bce(x: float, rho: float) -> float:
    """Cross-entropy of one pixel, as the package computes it."""
    return bernoulli_nll(one(x), one(rho).logit()).item()


def formula(x: float, a: float) -> float:
    """What BCE of a grey pixel is the negative logarithm of."""
    return math.exp(-bernoulli_nll(one(x), one(a)).item())


def area(a: float) -> float:
    return integrate.quad(formula, 0, 1, args=(a,), epsabs=1e-12)[0]


# --- a pixel that is black or white ----------------------------------------------------------------------


@pytest.mark.equation("eq-bernoulli-pmf")
def test_bernoulli_probabilities_of_all_images_match_drawn_frequencies():
    probabilities = (-bernoulli_nll(IMAGES, LOGITS.expand(16, 4))).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-14)
    draws = torch.bernoulli(torch.sigmoid(LOGITS).expand(400_000, 4), generator=generator())
    codes = (draws @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=F64)).long()
    counts = torch.bincount(codes, minlength=16).numpy()
    assert stats.chisquare(counts, 400_000 * probabilities.numpy()).pvalue > 1e-4


@pytest.mark.equation("eq-bce")
@pytest.mark.parametrize("image", range(16))
def test_bce_is_the_negative_logarithm_of_the_probability(image):
    """Probabilities from scipy's distribution, multiplied pixel by pixel."""
    factors = stats.bernoulli.pmf(IMAGES[image].numpy(), special.expit(LOGITS[0].numpy()))
    value = bernoulli_nll(IMAGES[image : image + 1], LOGITS).item()
    assert value == pytest.approx(-math.log(np.prod(factors)), rel=1e-12)
    assert value >= 0


@pytest.mark.equation("eq-bernoulli-elbo")
def test_bernoulli_elbo_matches_quadrature_over_the_code():
    torch.manual_seed(0)
    vae = mlp_vae(4, 1, hidden_dims=(5,)).double()
    x = IMAGES[6:7]
    with torch.no_grad():
        loc, log_scale = (value.item() for value in vae.encode(x))
        scale = math.exp(log_scale)
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        weights = weights / weights.sum()
        z = loc + scale * nodes
        rho = special.expit(vae.decode(torch.tensor(z)[:, None]).numpy())
        log_lik = stats.bernoulli.logpmf(x.numpy(), rho).sum(1)
        log_ratio = stats.norm.logpdf(z, loc, scale) - stats.norm.logpdf(z)
        draws = elbo_terms(vae, x, num_samples=200_000, generator=generator()).elbo()
    assert draws.item() == pytest.approx(weights @ (log_lik - log_ratio), abs=5e-3)


@pytest.mark.equation("eq-bernoulli-elbo")
def test_bernoulli_elbo_is_below_the_log_probability_of_every_image():
    torch.manual_seed(0)
    vae = mlp_vae(4, 1, hidden_dims=(5,)).double()
    with torch.no_grad():
        elbo = elbo_terms(vae, IMAGES, num_samples=20_000, generator=generator()).elbo()
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        rho = special.expit(vae.decode(torch.tensor(nodes)[:, None]).numpy())
    pmf = stats.bernoulli.pmf(IMAGES.numpy()[:, None], rho).prod(-1)  # (images, nodes)
    log_evidence = np.log(pmf @ (weights / weights.sum()))
    assert np.exp(log_evidence).sum() == pytest.approx(1, abs=1e-12)
    assert (elbo.numpy() < log_evidence).all()


@pytest.mark.equation("eq-weighted-bce")
@pytest.mark.parametrize("rho", [0.1, 0.5, 0.83])
def test_weighted_bce_is_no_bernoulli_nll(rho):
    """The weight at which the two pixels' values add up to 1 is found by a root search: it is 1."""

    def excess(weight: float) -> float:
        return sum(math.exp(-weight * bce(x, rho)) for x in (0.0, 1.0)) - 1

    assert optimize.brentq(excess, 0.05, 20) == pytest.approx(1, abs=1e-9)
    for weight in (0.3, 2.5):
        assert excess(weight) + 1 == pytest.approx(
            float(mpmath.mpf(rho) ** weight + (1 - mpmath.mpf(rho)) ** weight)
        )


@pytest.mark.equation("eq-bce-minimiser")
@pytest.mark.parametrize("values", [[0.0, 0.0, 1.0], [0.1, 0.2, 0.9], [0.5, 1.0, 0.3]], ids=str)
def test_bce_minimiser_is_the_mean(values):
    found = optimize.minimize_scalar(
        lambda a: sum(bernoulli_nll(one(x), one(a)).item() for x in values), bounds=(-8, 8), method="bounded"
    )
    assert special.expit(found.x) == pytest.approx(np.mean(values), abs=1e-4)


def test_mean_image_costs_206_nats(mnist_train):
    mean = mnist_train.mean(0).double()
    assert stats.bernoulli.entropy(mean.numpy()).sum() == pytest.approx(206.03, abs=5e-3)


@pytest.fixture(scope="module")
def mnist_train():
    return to_unit_interval(mnist("train")[0])


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
        truth = float(truth)
    assert bernoulli_nll(one(x), one(a)).item() == pytest.approx(truth, rel=1e-14)


@pytest.mark.parametrize(
    ("form", "x", "a"),
    [
        (lambda x, a: F.binary_cross_entropy(torch.sigmoid(a), x), 0.0, 17.0),
        (lambda x, a: F.binary_cross_entropy(torch.sigmoid(a), x), 1.0, 17.0),
        (lambda x, a: F.binary_cross_entropy_with_logits(a, x), 0.0, -17.0),
        (lambda x, a: F.softplus(a) - x * a, 1.0, 17.0),
    ],
    ids=["probabilities-wrong", "probabilities-right", "with-logits", "short"],
)
def test_shortcuts_lose_every_digit_in_float32(form, x, a):
    truth = float(mpmath.log1p(mpmath.exp(a if x == 0 else -a)))
    x32, a32 = torch.tensor([[x]]), torch.tensor([[a]])
    assert abs(form(x32, a32).item() / truth - 1) > 0.99
    assert bernoulli_nll(x32, a32).item() == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize(("x", "a"), [(0.0, 17.0), (0.0, 60.0), (1.0, -120.0)])
def test_library_clamps_value_at_100_and_loses_the_gradient(x, a):
    logits = torch.tensor([a], requires_grad=True)
    value = F.binary_cross_entropy(torch.sigmoid(logits), torch.tensor([x]))
    value.backward()
    assert (value.item(), logits.grad.item()) == (100, 0)


@pytest.mark.parametrize("a", [-30.0, -40.0, -60.0])
def test_library_gradient_fades_where_rho_is_below_its_floor(a):
    logits = torch.tensor([a], requires_grad=True)
    value = F.binary_cross_entropy(torch.sigmoid(logits), torch.tensor([1.0]))
    value.backward()
    assert value.item() == pytest.approx(-a, rel=1e-6)  # right, while the gradient should be -1
    assert logits.grad.item() == pytest.approx(-float(mpmath.exp(a)) / 1e-12, rel=1e-3)


# --- gradients -------------------------------------------------------------------------------------------


@pytest.mark.equation("eq-bce-gradient")
@LEVELS
@SIMPLE
def test_bce_gradient_is_prediction_minus_target(x, a):
    """The difference quotient is taken by mpmath, of the definition in probabilities."""

    def loss(value):
        rho = 1 / (1 + mpmath.exp(-value))
        return -x * mpmath.log(rho) - (1 - x) * mpmath.log(1 - rho)

    logits = one(a).requires_grad_()
    (slope,) = torch.autograd.grad(bernoulli_nll(one(x), logits).sum(), logits)
    assert slope.item() == pytest.approx(float(mpmath.diff(loss, a)), abs=1e-10)
    assert slope.item() == pytest.approx(special.expit(a) - x, abs=1e-12)


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
    nodes, weights = np.polynomial.legendre.leggauss(80)

    def moments(points, h, step=1e-3):
        log_partition = [np.log(np.sum(h * np.exp((a + t) * points))) for t in (-step, 0, step)]
        low, middle, high = log_partition
        return [(high - low) / (2 * step), (high - 2 * middle + low) / step**2]

    bernoulli = stats.bernoulli(special.expit(a))
    found = moments(np.array([0.0, 1.0]), np.ones(2))
    assert found == pytest.approx([bernoulli.mean(), bernoulli.var()], rel=1e-5)
    sigma = 0.5
    found = moments(6 * nodes, weights * stats.norm.pdf(6 * nodes, 0, sigma))
    assert found == pytest.approx([sigma**2 * a, sigma**2], rel=1e-5)
    continuous = torch.distributions.ContinuousBernoulli(logits=one(a))
    found = moments(0.5 + 0.5 * nodes, weights)
    assert found == pytest.approx([continuous.mean.item(), continuous.variance.item()], rel=1e-5)


@pytest.mark.equation("eq-squared-error-logit")
@LEVELS
@SIMPLE
def test_squared_error_behind_a_sigmoid_has_a_vanishing_factor(x, a):
    slope = float(mpmath.diff(lambda t: (1 / (1 + mpmath.exp(-t)) - x) ** 2 / 2, a))
    rho = special.expit(a)
    assert slope == pytest.approx((rho - x) * rho * (1 - rho), abs=1e-12)
    logits = one(a).requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * (torch.sigmoid(logits) - x).square().sum(), logits)
    assert gradient.item() == pytest.approx(slope, abs=1e-12)


@pytest.mark.equation("eq-escape-times")
@pytest.mark.parametrize("s", [0.5, 2.0, 6.0])
def test_escape_times_match_an_integrated_gradient_flow(s):
    def crossing(a, y):
        return y[0]

    crossing.terminal, crossing.direction = True, 1
    slopes = {  # by autograd of the losses themselves
        "bce": lambda a: F.binary_cross_entropy_with_logits(a, torch.ones_like(a)),
        "squared": lambda a: 0.5 * (1 - torch.sigmoid(a)).square().sum(),
    }
    times = {}
    for name, loss in slopes.items():

        def flow(t, y, loss=loss):
            a = torch.tensor(y, requires_grad=True)
            return -torch.autograd.grad(loss(a), a)[0].numpy()

        run = integrate.solve_ivp(flow, (0, 5000), [-s], events=crossing, rtol=1e-9, atol=1e-11)
        times[name] = run.t_events[0][0]
    assert times["bce"] == pytest.approx(s + 1 - math.exp(-s), rel=1e-6)
    expected = math.exp(s) + 3 * s + 2.5 - 3 * math.exp(-s) - 0.5 * math.exp(-2 * s)
    assert times["squared"] == pytest.approx(expected, rel=1e-6)


# --- grey pixels -----------------------------------------------------------------------------------------


@pytest.mark.equation("eq-pixel-entropy")
@pytest.mark.parametrize(
    ("images", "max_level", "expected"),
    [
        (lambda: mnist("train")[0], 255, 45.7568),
        (lambda: mnist("test")[0], 255, 45.5345),
        (lambda: digits()[0], 16, 13.658),
    ],
    ids=["train", "test", "digits"],
)
def test_pixel_entropy_of_the_data_sets_matches_scipy(images, max_level, expected):
    pixels = images().flatten()
    counts = torch.bincount(pixels, minlength=max_level + 1).numpy()
    entropy = stats.bernoulli.entropy(np.arange(max_level + 1) / max_level)
    assert counts @ entropy / len(images()) == pytest.approx(expected, abs=5e-4)


@pytest.mark.equation("eq-entropy-floor")
@LEVELS
@pytest.mark.parametrize("rho", [0.01, 0.4, 0.9])
def test_bce_is_entropy_plus_divergence(x, rho):
    divergence = special.rel_entr(x, rho) + special.rel_entr(1 - x, 1 - rho)
    assert bce(x, rho) == pytest.approx(stats.bernoulli.entropy(x) + divergence, rel=1e-12)
    assert bce(x, x) == pytest.approx(float(stats.bernoulli.entropy(x)), rel=1e-12)


@pytest.mark.equation("eq-grey-linear")
def test_grey_bce_is_the_average_over_all_binary_images():
    weights = np.prod(stats.bernoulli.pmf(IMAGES.numpy(), GREY.numpy()), axis=1)
    average = weights @ bernoulli_nll(IMAGES, LOGITS.expand(16, 4)).numpy()
    assert bernoulli_nll(GREY, LOGITS).item() == pytest.approx(average, rel=1e-12)


@pytest.mark.equation("eq-grey-linear")
def test_grey_bce_is_the_average_over_drawn_images():
    draws = binarize(GREY.expand(200_000, 4), generator=generator())
    losses = bernoulli_nll(draws, LOGITS.expand(200_000, 4))
    error = losses.std().item() / math.sqrt(len(losses))
    assert abs(losses.mean().item() - bernoulli_nll(GREY, LOGITS).item()) < 4.5 * error


class Codes:
    """Three codes for images of four pixels, enumerated with scipy's probabilities."""

    def __init__(self, seed: int, spread: float = 2.0) -> None:
        rng = np.random.default_rng(seed)
        rho = special.expit(spread * rng.normal(size=(3, 4)))
        self.prior = rng.dirichlet(np.ones(3))
        self.q = rng.dirichlet(np.ones(3))
        self.logits = torch.tensor(special.logit(rho))
        self.likelihood = stats.bernoulli.pmf(IMAGES.numpy(), rho[:, None]).prod(-1)  # (codes, images)
        self.weights = stats.bernoulli.pmf(IMAGES.numpy(), GREY.numpy()).prod(-1)  # (images,)
        self.evidence = self.prior @ self.likelihood
        self.top = self.weights @ np.log(self.evidence)

    def grey_elbo(self, q: np.ndarray) -> float:
        """From the package's BCE of grey pixels, as training code computes it."""
        loss = bernoulli_nll(GREY.expand(3, 4), self.logits).numpy()
        return float(-(q @ loss) - special.rel_entr(q, self.prior).sum())


@pytest.mark.equation("eq-grey-chain")
@pytest.mark.parametrize("seed", range(5))
def test_grey_chain_is_ordered_and_its_first_step_closes(seed):
    codes = Codes(seed)
    middle = math.log(codes.prior @ np.exp(np.log(codes.likelihood) @ codes.weights))
    assert codes.grey_elbo(codes.q) < middle < codes.top
    found = optimize.minimize(lambda t: -codes.grey_elbo(special.softmax(t)), np.zeros(3), tol=1e-12)
    assert -found.fun == pytest.approx(middle, abs=1e-8)  # the best q, found by search


@pytest.mark.equation("eq-grey-chain")
def test_grey_chain_is_an_equality_for_a_decoder_that_ignores_its_code():
    codes = Codes(0)
    same = -bernoulli_nll(GREY, codes.logits[:1]).item()
    average = codes.weights @ np.log(codes.likelihood[0])
    assert same == pytest.approx(average, rel=1e-12)


@pytest.mark.equation("eq-grey-gap")
@pytest.mark.parametrize("seed", range(3))
def test_grey_gap_is_the_average_divergence_from_the_posteriors_of_the_draws(seed):
    codes = Codes(seed)
    posteriors = codes.prior[:, None] * codes.likelihood / codes.evidence  # (codes, images)
    divergences = special.rel_entr(codes.q[:, None], posteriors).sum(0)
    gap = codes.top - codes.grey_elbo(codes.q)
    assert gap == pytest.approx(codes.weights @ divergences, rel=1e-10)


# --- the continuous Bernoulli ----------------------------------------------------------------------------


@pytest.mark.equation("eq-not-a-density")
@pytest.mark.parametrize("a", [-30.0, -3.0, 1e-3, 0.5, 12.0])
def test_area_under_the_formula_is_not_one(a):
    assert area(a) == pytest.approx(float(mpmath.tanh(mpmath.mpf(a) / 2) / a), rel=1e-8)
    assert area(a) <= 0.5 + 1e-12


@pytest.mark.equation("eq-continuous-bernoulli")
@SIMPLE
def test_continuous_bernoulli_is_a_density_with_normalizer_at_least_two(a):
    total, _ = integrate.quad(lambda x: math.exp(-continuous_bernoulli_nll(one(x), one(a)).item()), 0, 1)
    assert total == pytest.approx(1, abs=1e-8)
    normalizer = math.exp(-continuous_bernoulli_nll(one(0.4), one(a)).item()) / formula(0.4, a)
    assert normalizer == pytest.approx(1 / area(a), rel=1e-8)
    assert normalizer >= 2


@pytest.mark.equation("eq-continuous-elbo")
def test_continuous_elbo_exceeds_the_grey_elbo_by_the_normalizers():
    torch.manual_seed(0)
    vae = mlp_vae(4, 2, hidden_dims=(5,)).double()
    with torch.no_grad():
        grey = negative_elbo(vae, GREY, generator=generator())
        z_loc, z_log_scale = vae.encode(GREY)
        noise = torch.randn((1, 1, 2), generator=generator(), dtype=F64)
        logits = vae.decode(z_loc + z_log_scale.exp() * noise[0])
        vae.likelihood = ContinuousBernoulliLikelihood()
        continuous = negative_elbo(vae, GREY, generator=generator())
    expected = sum(-math.log(area(a)) for a in logits[0].tolist())
    gain = (grey - continuous).item()
    assert gain == pytest.approx(expected, rel=1e-7)
    assert gain >= 4 * math.log(2)


@pytest.mark.equation("eq-continuous-mean")
@pytest.mark.parametrize("a", [-200.0, -6.0, -0.7, 0.02, 3.0])
def test_continuous_mean_matches_quadrature(a):
    with mpmath.workdps(30):
        points = [0, min(1, 10 / abs(a)), 1] if a < 0 else [0, 1]
        mass, moment = (mpmath.quad(lambda x, n=n: x**n * mpmath.exp(a * x), points) for n in (0, 1))
        truth = float(moment / mass)
    assert ContinuousBernoulliLikelihood().mean(one(a)).item() == pytest.approx(truth, rel=1e-9)
    assert 0.5 + 0.5 / math.tanh(a / 2) - 1 / a == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("a", [-10.0, -1e3])
def test_continuous_density_of_a_black_pixel_is_unbounded(a):
    value = -continuous_bernoulli_nll(one(0.0), one(a)).item()
    assert value == pytest.approx(math.log(a / math.expm1(a)), rel=1e-9)


@pytest.mark.equation("eq-bce-score")
@pytest.mark.parametrize("rho", [0.05, 0.4, 0.8])
def test_expected_bce_depends_on_the_mean_alone(rho):
    """Beta variables of equal mean and different width have the same expected loss."""
    expected = stats.bernoulli.entropy(0.3) + special.rel_entr(0.3, rho) + special.rel_entr(0.7, 1 - rho)
    for total in (1.5, 30.0):
        grey = stats.beta(0.3 * total, 0.7 * total)
        value = grey.expect(lambda x: np.vectorize(bce)(x, rho))
        assert value == pytest.approx(expected, abs=1e-6)


# --- the bridge and the rule -----------------------------------------------------------------------------


@pytest.mark.equation("eq-pinsker-bridge")
def test_bce_above_its_floor_exceeds_the_squared_error_of_variance_one_quarter():
    x, rho = np.meshgrid(np.linspace(0, 1, 101), np.linspace(0.001, 0.999, 333))
    logits = torch.tensor(special.logit(rho)).reshape(-1, 1)
    loss = bernoulli_nll(torch.tensor(x).reshape(-1, 1), logits).numpy()
    excess = loss - stats.bernoulli.entropy(x.ravel())
    gaussian = -stats.norm.logpdf(x, rho, 0.5) + stats.norm.logpdf(0, 0, 0.5)
    assert (excess - gaussian.ravel()).min() > -1e-12


@pytest.mark.equation("eq-pinsker-bridge")
def test_the_variance_one_quarter_cannot_be_smaller():
    """At a half the bound is tight to second order: with any smaller variance it would fail."""
    excess = bce(0.5, 0.5 + 1e-3) - bce(0.5, 0.5)
    assert excess * 0.5 / 1e-6 == pytest.approx(1, rel=1e-5)
    assert excess < 1e-6 / (2 * 0.2499)


@pytest.mark.equation("eq-local-variance")
@pytest.mark.parametrize("rho", [0.01, 0.2, 0.5, 0.9])
def test_bce_is_locally_a_gaussian_of_the_coins_variance(rho):
    variance = stats.bernoulli.var(rho)
    curvature = mpmath.diff(
        lambda x: mpmath.mpf(x) * mpmath.log(x / rho) + (1 - x) * mpmath.log((1 - x) / (1 - rho)), rho, 2
    )
    assert float(curvature) == pytest.approx(1 / variance, rel=1e-6)
    step = 1e-3 * min(rho, 1 - rho)
    excess = bce(rho + step, rho) - bce(rho + step, rho + step)
    assert excess == pytest.approx(step**2 / (2 * variance), rel=2e-3)


def mean_log_evidence(images: np.ndarray, direction: np.ndarray) -> float:
    """Average log P(x) of a decoder with logits logit(mean) + direction * z, by quadrature over z."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    logits = special.logit(images.mean(0)) + nodes[:, None] * direction  # (nodes, pixels)
    log_lik = images @ logits.T - np.logaddexp(0, logits).sum(1)  # (images, nodes)
    return float(special.logsumexp(log_lik, b=weights / weights.sum(), axis=1).mean())


def grey_images(strength: float) -> np.ndarray:
    """Images of four grey pixels that share a cause of this strength."""
    rng = np.random.default_rng(1)
    cause, own = rng.normal(size=(300, 1)), rng.normal(size=(300, 4))
    return special.expit(strength * cause + own - 0.5)


@pytest.mark.equation("eq-collapse-curvature")
@pytest.mark.parametrize("strength", [0.3, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_evidence_near_collapse_has_the_predicted_curvature(strength, seed):
    images = grey_images(strength)
    direction = np.random.default_rng(seed).normal(size=4)
    mean = images.mean(0)
    excess = np.cov(images.T, bias=True) - np.diag(mean * (1 - mean))
    predicted = 0.5 * direction @ excess @ direction
    base = mean_log_evidence(images, 0 * direction)
    steps = np.array([0.02, 0.04])
    ratios = [(mean_log_evidence(images, s * direction) - base) / s**2 for s in steps]
    extrapolated = (4 * ratios[0] - ratios[1]) / 3  # the next term is of fourth order
    assert extrapolated == pytest.approx(predicted, rel=1e-3, abs=1e-6)


@pytest.mark.equation("eq-collapse-curvature")
@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_best_weighted_elbo_near_collapse_has_the_predicted_curvature(beta):
    """With weight beta: the best normal q of each image by search, expectations by quadrature."""
    images = grey_images(3.0)[:12]
    direction = 0.05 * np.array([1.0, 0.8, -0.3, 0.6])
    mean = images.mean(0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()

    def loss(q, x, w):
        loc, log_scale = q
        logits = special.logit(mean) + (loc + math.exp(log_scale) * nodes[:, None]) * w
        log_lik = logits @ x - np.logaddexp(0, logits).sum(1)
        kl = 0.5 * (loc**2 + math.exp(2 * log_scale) - 1) - log_scale
        return beta * kl - weights @ log_lik

    gains = []
    for x in images:
        best = optimize.minimize(loss, [0.0, 0.0], args=(x, direction), tol=1e-12).fun
        gains.append(loss([0.0, 0.0], x, 0 * direction) - best)
    excess = np.cov(images.T, bias=True) - beta * np.diag(mean * (1 - mean))
    assert np.mean(gains) == pytest.approx(direction @ excess @ direction / (2 * beta), rel=0.02)


def test_binary_data_with_correlated_pixels_always_leave_collapse():
    images = (grey_images(0.5) > 0.5).astype(float)
    mean = images.mean(0)
    excess = np.cov(images.T, bias=True) - np.diag(mean * (1 - mean))
    assert np.trace(excess) == pytest.approx(0, abs=1e-12)
    values, vectors = np.linalg.eigh(excess)
    assert values[-1] > 0
    step = 0.1 * vectors[:, -1]
    assert mean_log_evidence(images, step) > mean_log_evidence(images, 0 * step)


@pytest.mark.parametrize(("claimed", "count"), [(1.0, 0), (0.25, 5), (None, 7)])
def test_growing_directions_of_the_digits(claimed, count):
    x = to_unit_interval(digits()[0], max_level=16).double().numpy()
    x = x[:, x.max(0) > 0]
    mean = x.mean(0)
    variance = mean * (1 - mean) if claimed is None else np.full_like(mean, claimed)
    assert (np.linalg.eigvalsh(np.cov(x.T, bias=True) - np.diag(variance)) > 0).sum() == count


# --- other likelihoods -----------------------------------------------------------------------------------


@pytest.mark.equation("eq-laplace-decoder")
@pytest.mark.parametrize("scale", [0.1, 6.144])
def test_laplace_decoder_matches_scipy(scale):
    expected = -stats.laplace.logpdf(GREY.numpy(), LOGITS.numpy(), scale).sum()
    assert laplace_nll(GREY, LOGITS, scale).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("x", [-0.4, 2.5])
def test_bce_outside_the_unit_interval_is_unbounded(x):
    a = torch.tensor([1e3 if x > 1 else -1e3], dtype=F64)
    value = F.binary_cross_entropy_with_logits(a, torch.full_like(a, x)).item()
    assert value < -300
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        bernoulli_nll(one(x), one(0.0))


def test_taylor_series_in_the_probability_is_off_by_half_a_nat():
    def series(t):
        return math.log(2) + 4 / 3 * t**2 + 104 / 45 * t**4

    def exact(rho):
        return -math.log(area(float(special.logit(rho))))

    assert series(0.505 - 0.5) == pytest.approx(exact(0.505), abs=1e-9)
    assert series(0.505) - exact(0.505) == pytest.approx(0.478, abs=0.02)
    assert series(0.5) - math.log(2) == pytest.approx(0.4778, abs=1e-4)


def test_importance_weights_tighten_a_bernoulli_bound():
    torch.manual_seed(0)
    vae = mlp_vae(4, 1, hidden_dims=(5,)).double()
    with torch.no_grad():
        tight = importance_weighted_bound(vae, IMAGES, num_samples=20_000, generator=generator())
    assert tight.exp().sum().item() == pytest.approx(1, abs=0.02)  # all 16 images
