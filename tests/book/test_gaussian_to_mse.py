"""The equations of the third chapter, each against an oracle that does not contain its formula."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from tests.book.oracles import F64, assert_mean, column, descend, flat, generator, gradient, hermite, smallest
from vaecourse.datasets import dequantize
from vaecourse.densities import gaussian_nll
from vaecourse.diagnosis import diagnose_loss
from vaecourse.divergences import kl_standard_normal
from vaecourse.evaluation import nats_to_bits_per_dim
from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.linear_vae import LinearVAE
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import elbo_terms, implied_variance, kl_weight_for, negative_elbo

D, K, B = 12, 3, 8  # pixels, latents and images of the deep model
LOG_2PI = math.log(2 * math.pi)
LEVELS = pytest.mark.parametrize("level", [0, 3, 128, 130, 255])


def images(count: int = B, dim: int = D) -> Tensor:
    return torch.rand(count, dim, dtype=F64, generator=generator(7))


def deep_vae(scale: float | str = 1.0, dim: int = D, latent_dim: int = K) -> VAE:
    """The same smooth networks at every call."""
    torch.manual_seed(3)
    likelihood = GaussianLikelihood(scale)  # type: ignore[arg-type]
    vae = mlp_vae(dim, latent_dim, hidden_dims=(9,), likelihood=likelihood, activation=nn.Tanh).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(2)  # away from linear, and from the prior
    return vae


def seeded_loss(vae: VAE, x: Tensor, seed: int = 0, **options: float) -> Tensor:
    return negative_elbo(vae, x, generator=generator(seed), **options)


def drawn(vae: VAE, x: Tensor) -> tuple[Normal, Tensor]:
    """q, and the code of each image that `seeded_loss` draws from it."""
    q = vae.posterior(x).base_dist
    return q, q.loc + q.scale * torch.randn(1, *q.loc.shape, dtype=F64, generator=generator())[0]


def squares_and_kl(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of squares at the draw of `seeded_loss`, and KL by torch; per image."""
    q, z = drawn(vae, x)
    return (x - vae.decode(z)).square().sum(1), kl_divergence(q, Normal(0.0, 1.0)).sum(1)


def eigenvalues(x: Tensor) -> np.ndarray:
    """Of the covariance, descending, from numpy's singular values."""
    centred = x.numpy() - x.numpy().mean(0)
    return np.linalg.svd(centred, compute_uv=False) ** 2 / len(x)


@torch.no_grad()
def exact_loss(model: LinearVAE, x: Tensor, *, variance: float, beta: float = 1.0) -> float:
    """Average objective of these networks under another noise."""
    model.likelihood = GaussianLikelihood(math.sqrt(variance))
    return -model.exact_elbo_terms(x).elbo(beta).mean().item()


def assert_close(found: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    assert (found - expected).norm() <= rtol * expected.norm()
    assert expected.norm() > 0


# --- from the density to the squared error ---------------------------------------------------------------


@pytest.mark.equation("eq-gaussian-reconstruction")
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@torch.no_grad()
def test_reconstruction_term_matches_scipy_at_the_same_draws(scale):
    vae, x = deep_vae(scale), images()
    found = elbo_terms(vae, x, num_samples=5, generator=generator()).nll
    q = vae.posterior(x).base_dist
    params = vae.decode(q.loc + q.scale * torch.randn(5, B, K, dtype=F64, generator=generator()))
    densities = stats.norm.logpdf(x.numpy(), params.numpy(), scale).sum(-1)
    np.testing.assert_allclose(found, -densities.mean(0), rtol=1e-10)
    squares = (x - params).square().sum(-1).mean(0)
    expected = squares / (2 * scale**2) + D / 2 * math.log(2 * math.pi * scale**2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def one_latent() -> tuple[VAE, Tensor, float, float]:
    """Networks with one latent, an image of four pixels, and its mean and scale."""
    vae, x = deep_vae(0.3, dim=4, latent_dim=1), images(1, 4)
    q = vae.posterior(x).base_dist
    return vae, x, q.loc.item(), q.scale.item()


@pytest.mark.equation("eq-gaussian-reconstruction")
@torch.no_grad()
def test_reconstruction_term_matches_quadrature_over_the_code():
    vae, x, loc, scale = one_latent()
    nodes, weights = hermite(60)
    params = vae.decode(column(*(loc + scale * nodes))).numpy()
    nats = -weights @ stats.norm.logpdf(x.numpy(), params, 0.3).sum(1)
    squares = weights @ np.square(x.numpy() - params).sum(1)
    assert squares / (2 * 0.3**2) + 2 * math.log(2 * math.pi * 0.3**2) == pytest.approx(nats, rel=1e-8)
    draws = elbo_terms(vae, x.expand(100_000, 4), generator=generator()).nll
    assert_mean(draws, nats)
    assert draws.std() / math.sqrt(len(draws)) < 0.01 * abs(nats)


@pytest.mark.equation("eq-expected-square")
@torch.no_grad()
def test_expected_square_is_bias_plus_spread_for_a_curved_decoder():
    """The left side by adaptive quadrature, the moments of the decoded code by a Gauss-Hermite rule."""
    vae, x, loc, _ = one_latent()

    def square(t: float) -> float:
        """Of the error at the code loc + 0.6 t: wide enough to feel the curvature."""
        return (x - vae.decode(column(loc + 0.6 * t))).square().sum().item()

    left = integrate.quad(lambda t: stats.norm.pdf(t) * square(t), -9, 9, epsabs=1e-9, epsrel=1e-9)[0]
    nodes, weights = hermite(150)
    outputs = vae.decode(column(*(loc + 0.6 * nodes))).numpy()
    spread = np.trace(np.cov(outputs.T, aweights=weights, ddof=0))
    bias = np.square(x.numpy() - weights @ outputs).sum()
    assert left == pytest.approx(bias + spread, rel=1e-7)
    assert spread > 1e-2 * left
    assert abs(square(0) - bias) > 1e-3 * bias  # the decoder is curved: mu(E z) is not E mu(z)


# --- the mean in place of a draw -------------------------------------------------------------------------


@pytest.mark.equation("eq-mean-code-excess")
@pytest.mark.parametrize("scale", [0.2, 0.9, 2.0])
@torch.no_grad()
def test_mean_code_exceeds_the_evidence_of_a_linear_model(scale):
    """The "ELBO" of the exact posterior with z replaced by its mean, by torch's distributions."""
    torch.manual_seed(0)
    model, x = LinearVAE(D, K, scale=scale).double(), images()
    nn.init.normal_(model.decoder.weight)
    q, weight = model.exact_posterior(x), model.weight.numpy()
    covariance = q.covariance_matrix[0].numpy()
    density = Independent(model.likelihood.distribution(model.decode(q.loc)), 1).log_prob(x)
    prior = MultivariateNormal(torch.zeros(K, dtype=F64), torch.eye(K, dtype=F64))
    trace = np.trace(weight @ covariance @ weight.T) / (2 * scale**2)
    excess = density - kl_divergence(q, prior) - model.log_likelihood(x)
    np.testing.assert_allclose(excess, np.full(B, trace), rtol=1e-8)
    assert 0.5 * np.sum(1 - np.linalg.eigvalsh(covariance)) == pytest.approx(trace, rel=1e-10)
    assert abs(covariance - np.diag(np.diag(covariance))).max() > 1e-3 * np.diag(covariance).max()


@pytest.mark.equation("eq-mean-code-excess")
@torch.no_grad()
def test_mean_code_exceeds_the_evidence_of_digits_by_almost_half_a_nat_a_latent(digits_x):
    model = LinearVAE.from_ppca(digits_x, 10)
    loc, log_scale = model.encode(digits_x)
    at_the_mean = -model.likelihood.nll(digits_x, model.decode(loc)) - kl_standard_normal(loc, log_scale)
    excess = at_the_mean - model.log_likelihood(digits_x)
    values = eigenvalues(digits_x)
    expected = 0.5 * np.sum(1 - values[10:].mean() / values[:10])  # posterior variances, from the spectrum
    np.testing.assert_allclose(excess, np.full(len(digits_x), expected), rtol=1e-7)
    assert 4 < expected < 5


# --- weights are a variance ------------------------------------------------------------------------------


@pytest.mark.equation("eq-weighted-loss", "eq-implied-variance")
@pytest.mark.parametrize(("a", "w"), [(0.5, 1.0), (1.0, 1.0), (1 / D, 1.0), (1.0, 0.003), (7.0, 40.0)])
def test_weighted_loss_is_a_scaled_elbo_without_its_constant(a, w):
    """The constant is what images cost that are predicted exactly."""
    vae, x = deep_vae(math.sqrt(implied_variance(a, w))), images()
    squares, kl = squares_and_kl(vae, x)
    loss, elbo = (a * squares + w * kl).mean(), seeded_loss(vae, x)
    assert_close(gradient(loss, vae), w * gradient(elbo, vae))
    constant = vae.likelihood.nll(x, x).mean()
    assert loss.item() == pytest.approx(w * (elbo - constant).item(), rel=1e-10)


@pytest.mark.equation("eq-implied-variance")
@pytest.mark.parametrize(("a", "w"), [(1.0, 1.0), (1 / D, 0.7)])
def test_no_other_variance_gives_the_gradients(a, w):
    """A search for the noise whose ELBO has parallel gradients."""
    vae, x = deep_vae(), images()
    squares, kl = squares_and_kl(vae, x)
    target = gradient((a * squares + w * kl).mean(), vae)

    def misalignment(log_variance: float) -> float:
        vae.likelihood = GaussianLikelihood(math.exp(log_variance / 2))
        found = gradient(seeded_loss(vae, x), vae)
        return (found / found.norm() - target / target.norm()).norm().item()

    best = math.exp(smallest(misalignment, -5, 6).x)
    assert [implied_variance(a, w), w / (2 * a)] == pytest.approx([best] * 2, rel=1e-6)


REDUCTIONS = {  # of the KL, beside a mean of squares, and the variance for the weight 1
    "mean-sum": (lambda kl: kl.sum(1).mean(), lambda d, k, b: d / 2),
    "mean-mean": (lambda kl: kl.mean(), lambda d, k, b: d / (2 * k)),
    "batch-sum": (lambda kl: kl.sum(), lambda d, k, b: b * d / 2),
}


@pytest.mark.equation("eq-mean-sum-variance", "eq-mean-mean-variance", "eq-batch-sum-variance")
@pytest.mark.parametrize(
    ("name", "w", "batch_size", "variance"),
    [
        ("mean-sum", 1.0, 8, 392.0),
        ("mean-sum", 0.01, 8, 3.92),
        ("mean-sum", 1 / 784, 8, 0.5),
        ("mean-mean", 1.0, 8, 19.6),
        ("mean-mean", 0.1, 8, 1.96),
        ("batch-sum", 1.0, 8, 3136.0),
        ("batch-sum", 1.0, 32, 12544.0),
        ("batch-sum", 0.02, 8, 62.72),
    ],
)
def test_mean_of_squares_assumes_a_variance_by_the_reduction_of_the_kl(name, w, batch_size, variance):
    """By diagnosis; and at deep networks, where the gradients are a combination of two, and of an ELBO."""
    reduce, variance_of = REDUCTIONS[name]

    def loss(y: Tensor, t: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        return (y - t).square().mean() + w * reduce(-0.5 * (1 + logvar - mu.square() - logvar.exp()))

    diagnosis = diagnose_loss(loss, data_dim=784, latent_dim=20, batch_size=batch_size)
    assert diagnosis.family == "gaussian"
    assert diagnosis.scale**2 == pytest.approx(variance, rel=1e-4)
    if name != "batch-sum":
        kl = name.partition("-")[2]
        weight = kl_weight_for(data_dim=784, latent_dim=20, scale=math.sqrt(variance), kl=kl)
        assert weight == pytest.approx(w, rel=1e-12)

    small_variance = w * variance_of(D, K, B)
    vae, x = deep_vae(math.sqrt(small_variance)), images()
    q, z = drawn(vae, x)
    found = gradient(loss(vae.decode(z), x, q.loc, 2 * q.scale.log()), vae)
    terms = torch.stack([gradient(term.mean(), vae) for term in squares_and_kl(vae, x)], 1)
    (a, kl_weight), *_ = np.linalg.lstsq(terms.numpy(), found.numpy(), rcond=None)
    assert kl_weight / (2 * a) == pytest.approx(small_variance, rel=1e-9)
    assert_close(found, float(kl_weight) * gradient(seeded_loss(vae, x), vae))


# --- beta, and the variance that is reported -------------------------------------------------------------


@pytest.mark.equation("eq-effective-beta")
@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_weight_of_the_kl_acts_as_a_variance(beta):
    vae, other, x = deep_vae(0.4), deep_vae(0.4 * math.sqrt(beta)), images()
    weighted = gradient(seeded_loss(vae, x, beta=beta), vae)
    assert_close(weighted, beta * gradient(seeded_loss(other, x), other))


@pytest.mark.equation("eq-effective-beta")
@torch.no_grad()
def test_objectives_with_equal_products_differ_by_a_constant():
    """Over a random walk of the networks, the difference to 5 times the other objective does not change."""
    vae, other, x = deep_vae(0.4), deep_vae(0.4 * math.sqrt(5)), images()
    differences, losses = [], []
    for step in range(4):
        losses.append(seeded_loss(vae, x, step, beta=5).item())
        differences.append(losses[-1] - 5 * seeded_loss(other, x, step).item())
        for p, q in zip(vae.parameters(), other.parameters(), strict=True):
            p.add_(0.3 * torch.randn_like(p))
            q.copy_(p)
    assert np.ptp(differences) < 1e-9 * np.ptp(losses)


@pytest.mark.equation("eq-effective-beta")
@pytest.mark.parametrize("beta", [0.3, 5.0])
def test_linear_optimum_at_the_product_is_one_at_the_pair(digits_x, beta):
    """The best networks at variance 0.5, trained on with the noise 0.5 / beta: nothing moves."""
    model = LinearVAE.from_ppca(digits_x, 6, scale=math.sqrt(0.5))
    model.likelihood = GaussianLikelihood(math.sqrt(0.5 / beta))
    terms = model.exact_elbo_terms(digits_x)
    size = gradient(terms.nll.mean(), model).norm()
    assert gradient(-terms.elbo(beta).mean(), model).norm() < 1e-9 * size
    assert gradient(-terms.elbo(1.1 * beta).mean(), model).norm() > 1e-3 * size


@pytest.mark.equation("eq-reported-variance", "eq-log-mse-objective")
def test_best_variance_for_fixed_networks_is_the_mean_squared_error_and_leaves_its_logarithm():
    """By a search; and the scale "optimal" has the value and the gradient of the logarithm."""
    vae, optimal, x = deep_vae(), deep_vae("optimal").train(), images()

    def loss(log_variance: float) -> float:
        vae.likelihood = GaussianLikelihood(math.exp(log_variance / 2))
        return seeded_loss(vae, x).item()

    best = smallest(loss, -6, 6)
    squares, kl = squares_and_kl(vae, x)
    assert math.exp(best.x) == pytest.approx(squares.mean().item() / D, rel=1e-6)
    objective = D / 2 * ((squares.mean() / D).log() + 1 + LOG_2PI) + kl.mean()
    at_optimal = seeded_loss(optimal, x)
    assert [objective.item(), at_optimal.item()] == pytest.approx([best.fun] * 2, rel=1e-10)
    assert_close(gradient(at_optimal, optimal), gradient(objective, vae))


@pytest.mark.equation("eq-reported-variance")
@torch.no_grad()
def test_variance_of_digits_that_beta_hides(digits_x):
    model = LinearVAE.from_ppca(digits_x, 6, scale=math.sqrt(0.5))
    for variance, beta, nats in [(0.5, 1.0, 41.2741), (0.1, 5.0, 8.3432), (0.1, 1.0, 6.9789)]:
        assert exact_loss(model, digits_x, variance=variance, beta=beta) == pytest.approx(nats, abs=6e-5)
    best = smallest(lambda v: exact_loss(model, digits_x, variance=math.exp(v)), -6, 1)
    assert math.exp(best.x) == pytest.approx(0.0672141, rel=1e-4)
    assert best.fun == pytest.approx(4.75721, abs=6e-6)
    loc, log_scale = model.encode(digits_x)
    spread = torch.trace(model.weight @ (2 * log_scale[0]).exp().diag() @ model.weight.T)
    mse = ((digits_x - model.decode(loc)).square().sum(1).mean() + spread).item() / 64
    assert mse == pytest.approx(0.0672141, abs=6e-8)


# --- what the optimiser sees -----------------------------------------------------------------------------


@pytest.mark.equation("eq-two-gradients")
@pytest.mark.parametrize(("a", "w"), [(1.0, 1.0), (0.3, 1.0), (0.3, 20.0), (0.3, 50.0)])
def test_kl_gives_the_decoder_nothing_and_pulls_the_encoder_to_the_prior(a, w):
    """The decoder's last bias gets 2 a times the mean error; the encoder's also w mean, w (variance - 1)."""
    vae, x = deep_vae(), images()
    squares, kl = squares_and_kl(vae, x)
    loss, (q, z) = (a * squares + w * kl).mean(), drawn(vae, x)
    assert_close(gradient(loss, vae.decoder), a * gradient(squares.mean(), vae.decoder), 1e-12)
    last = [part.network[-1].bias for part in (vae.decoder, vae.encoder)]
    by_decoder, by_encoder = torch.autograd.grad(loss, last, retain_graph=True)
    assert_close(by_decoder, 2 * a * (vae.decode(z) - x).mean(0))
    (fit,) = torch.autograd.grad(squares.mean(), last[1])
    assert_close(by_encoder - a * fit, w * torch.cat([q.loc.mean(0), (q.variance - 1).mean(0)]).detach())
    assert fit.norm() > 0


def adam_path(factor: float, eps: float) -> Tensor:
    vae, x = deep_vae(), images()
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01, eps=eps)
    path = []
    optimizer.register_step_post_hook(lambda *_: path.append(flat(vae)))
    descend(optimizer, lambda step: factor * seeded_loss(vae, x, step), 25)
    return torch.stack(path)


@pytest.mark.equation("eq-adam-scale")
@pytest.mark.parametrize("factor", [1 / 784, 0.1, 30.0])
def test_adam_sees_a_factor_of_the_loss_in_epsilon_only(factor):
    scaled = adam_path(factor, 1e-2)
    torch.testing.assert_close(scaled, adam_path(1.0, 1e-2 / factor), rtol=1e-8, atol=1e-8)
    assert (scaled - adam_path(1.0, 1e-2)).abs().max() > 1e-3  # an epsilon this large is felt
    torch.testing.assert_close(adam_path(factor, 1e-15), adam_path(1.0, 1e-15), rtol=1e-6, atol=1e-6)


# --- linear VAEs -----------------------------------------------------------------------------------------


@pytest.mark.equation("eq-linear-distortion")
@pytest.mark.parametrize(("latent_dim", "variance", "beta"), [(6, 0.5, 1), (10, 0.05, 4), (20, 0.02, 1)])
@torch.no_grad()
def test_best_linear_vae_floods_small_eigenvalues(digits_x, latent_dim, variance, beta):
    model = LinearVAE.from_ppca(digits_x, latent_dim, scale=math.sqrt(variance), beta=beta)
    nll = model.exact_elbo_terms(digits_x).nll.mean().item()
    distortion = (nll - 32 * math.log(2 * math.pi * variance)) * 2 * variance
    values = eigenvalues(digits_x)
    expected = np.minimum(values[:latent_dim], beta * variance).sum() + values[latent_dim:].sum()
    assert distortion == pytest.approx(expected, rel=1e-9)
    assert_mean(squares_and_kl(model, digits_x)[0], expected)


@pytest.mark.equation("eq-learned-variance")
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 5.0])
def test_learned_variance_of_a_linear_vae_is_a_fixed_point_and_leaves_no_gradient(digits_x, beta):
    """A search over the variance, with the best networks for each; then their gradient, with the noise's."""

    def best(variance: float) -> LinearVAE:
        return LinearVAE.from_ppca(digits_x, 10, scale=math.sqrt(variance), beta=beta)

    def loss(log_variance: float) -> float:
        variance = math.exp(log_variance)
        return exact_loss(best(variance), digits_x, variance=variance, beta=beta)

    found, values = math.exp(smallest(loss, -6, 0).x), eigenvalues(digits_x)
    num_active = int((values[:10] > beta * found).sum())
    variance = values[num_active:].sum() / (64 - num_active * beta)
    assert found == pytest.approx(variance, rel=1e-6)
    if beta == 1:
        assert found == pytest.approx(LinearVAE.from_ppca(digits_x, 10).likelihood.scale ** 2, rel=1e-6)
    model = LinearVAE(64, 10, scale="learned").double()
    model.load_state_dict(best(variance).state_dict(), strict=False)
    nn.init.constant_(model.likelihood.log_scale, 0.5 * math.log(variance))
    terms = model.exact_elbo_terms(digits_x)
    size = gradient(terms.nll.mean(), model.encoder).norm()
    assert gradient(-terms.elbo(beta).mean(), model).norm() < 1e-8 * size


# --- the variance from the errors ------------------------------------------------------------------------


def smallest_nlls(x: Tensor, params: Tensor) -> tuple[float, float]:
    """Nats under the best scale that all images share, and under the best of each, by searches."""

    def search(rows: slice) -> float:
        part = x[rows], params[rows]
        return smallest(lambda log_scale: gaussian_nll(*part, math.exp(log_scale)).sum().item(), -8, 4).fun

    return search(slice(None)), sum(search(slice(n, n + 1)) for n in range(len(x)))


@pytest.mark.equation("eq-per-image-variance")
def test_a_variance_for_every_image_saves_nothing_only_when_errors_are_equal():
    x, errors = images(), torch.randn(B, D, dtype=F64, generator=generator())
    params = x + torch.linspace(0.1, 1, B, dtype=F64)[:, None] * errors
    shared, own = smallest_nlls(x, params)
    assert shared - own > 0.1 * B
    mse = (x - params).square().mean(1)
    gap = mse.mean().log() - mse.log().mean()
    assert B * D / 2 * gap.item() == pytest.approx(shared - own, rel=1e-7)

    params = x + 0.3 * errors / errors.square().mean(1, keepdim=True).sqrt()
    shared, own = smallest_nlls(x, params)
    assert shared == pytest.approx(own, rel=1e-9)
    params[0] += 0.05 * (params[0] - x[0])  # one image a little worse than the others
    shared, own = smallest_nlls(x, params)
    assert shared > own + 1e-3


@pytest.mark.equation("eq-per-image-variance")
def test_variance_from_the_scored_image_is_no_density():
    """Each decade of the error adds the same mass, so that no factor makes the integral 1."""

    def formula(log_error: float) -> float:
        error = column(math.exp(log_error))
        return math.exp(log_error - gaussian_nll(error, torch.zeros_like(error), error).item())

    ends = -math.log(10) * np.arange(13)
    decades = [2 * integrate.quad(formula, low, high)[0] for high, low in itertools.pairwise(ends)]
    assert decades == pytest.approx([2 * math.log(10) * stats.norm.pdf(1)] * 12, rel=1e-8)
    assert sum(decades) > 1


@pytest.mark.equation("eq-constant-pixel")
def test_nll_of_a_pixel_that_is_hit_has_no_lower_bound():
    scales = 10.0 ** -np.arange(0, 101, 20)
    found = [gaussian_nll(column(0.7), column(0.7), scale).item() for scale in scales]
    assert found == pytest.approx(-stats.norm.logpdf(0.7, 0.7, scales), rel=1e-12)
    assert np.ptp(found - np.log(scales)) < 1e-9
    assert found[0] == pytest.approx(0.9189, abs=5e-5)
    assert found[-1] < -229


@pytest.mark.equation("eq-constant-pixel")
def test_soft_floor_bounds_the_nll_of_a_pixel_that_is_hit():
    raw = column(2.0, -3.0, -6.0, -12.0, -20.0, -1e4)
    pixel = torch.full_like(raw, 0.7)
    *values, lowest = GaussianLikelihood("per_pixel").nll(pixel, torch.cat([pixel, raw], 1)).tolist()
    floor = -stats.norm.logpdf(0, scale=math.exp(-6))
    assert (np.diff([*values, floor]) < 0).all()
    assert lowest == pytest.approx(floor, abs=1e-12)
    assert floor == pytest.approx(-5.0811, abs=5e-5)


# --- integers in a continuous world ----------------------------------------------------------------------


def log_bin_probability(level: int, loc: float, scale: float) -> float:
    """Log of a Gaussian's mass in [level / 256, (level + 1) / 256], far tails included."""
    low, high = ((level + step) / 256 - loc for step in (0, 1))
    low, high = (low, high) if low + high < 0 else (-high, -low)  # in the lower tail, nothing cancels
    log_low, log_high = special.log_ndtr(low / scale), special.log_ndtr(high / scale)
    return log_high + math.log1p(-math.exp(log_low - log_high))


def bound(density, level: int) -> float:
    """E_u log p((level + u) / 256) - log 256."""
    return integrate.quad(lambda u: density.logpdf((level + u) / 256), 0, 1)[0] - math.log(256)


@pytest.mark.equation("eq-dequantization-bound")
@LEVELS
@pytest.mark.parametrize(("scale", "low", "top"), [(0.001, 0.1, np.inf), (0.01, 0, np.inf), (0.3, 0, 1e-4)])
def test_dequantized_density_bounds_the_probability_of_a_level(level, scale, low, top):
    gap = log_bin_probability(level, 0.507, scale) - bound(stats.norm(0.507, scale), level)
    assert low < gap < top


@pytest.mark.equation("eq-dequantization-bound")
@LEVELS
def test_bound_is_an_equality_for_a_flat_density_only(level):
    flat, sloped = stats.beta(1, 1), stats.beta(1, 3)
    edges = np.array([level, level + 1]) / 256
    assert bound(flat, level) == pytest.approx(math.log(np.diff(flat.cdf(edges))[0]), abs=1e-10)
    assert bound(sloped, level) < math.log(-np.diff(sloped.sf(edges))[0]) - 1e-7


@pytest.mark.equation("eq-dequantization-bound")
def test_dequantize_draws_the_noise_of_the_bound():
    pixels = torch.full((200_000, 1), 130, dtype=torch.uint8)
    x = dequantize(pixels, generator=generator()).double()
    values = -gaussian_nll(x, torch.full_like(x, 0.507), 0.001) - math.log(256)
    assert_mean(values, bound(stats.norm(0.507, 0.001), 130))
    assert values.mean().item() < log_bin_probability(130, 0.507, 0.001) - 0.1


@pytest.mark.equation("eq-bits-per-dimension")
@pytest.mark.parametrize("dim", [1, 5])
def test_bits_per_dimension_are_those_of_the_unscaled_levels(dim):
    """The same Gaussian, in the unit of one level: its density needs no correction."""
    x, loc, scale = images(1, dim)[0].numpy(), 0.4, 0.07
    nats = -stats.norm.logpdf(x, loc, scale).sum()
    bits = -np.log2(stats.norm.pdf(256 * x, 256 * loc, 256 * scale)).mean()
    assert nats_to_bits_per_dim(nats, dim) == pytest.approx(bits, rel=1e-12)
    assert nats / (dim * math.log(2)) + 8 == pytest.approx(bits, rel=1e-12)
    bits_of_flat = stats.randint(0, 256).entropy() / math.log(2)
    assert nats_to_bits_per_dim(0.0, dim) == pytest.approx(bits_of_flat, rel=1e-12)


@pytest.mark.equation("eq-bits-per-dimension")
def test_bits_per_dimension_are_a_code_length():
    """For a Gaussian of many levels, the mean code length of four pixels of its discretised self."""
    log_probabilities = np.array([log_bin_probability(level, 0.5, 0.1) for level in range(256)])
    probabilities = np.exp(log_probabilities)
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)
    nats = [-bound(stats.norm(0.5, 0.1), level) - math.log(256) for level in range(256)]
    bits = nats_to_bits_per_dim(4 * float(probabilities @ nats), 4)
    length = -probabilities @ log_probabilities / math.log(2)
    assert length < bits == pytest.approx(length, rel=1e-4)


@pytest.mark.equation("eq-uniform-bin")
def test_best_gaussian_for_one_bin_costs_a_quarter_of_a_bit():
    def bits(parameters: np.ndarray) -> float:
        loc, scale = (100 + parameters[0]) / 256, math.exp(parameters[1]) / 256
        return -bound(stats.norm(loc, scale), 100) / math.log(2)

    best = optimize.minimize(bits, [0.2, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-11})
    assert best.x[0] == pytest.approx(0.5, abs=1e-4)
    assert best.fun == pytest.approx(0.5 * math.log2(2 * math.pi * math.e / 12), abs=1e-8)
    assert best.fun == pytest.approx(0.2546, abs=5e-5)
