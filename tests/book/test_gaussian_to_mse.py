"""The equations of the third chapter, each against an oracle that does not contain its formula."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from vaecourse.datasets import dequantize
from vaecourse.densities import gaussian_nll
from vaecourse.diagnosis import diagnose_loss
from vaecourse.divergences import kl_standard_normal
from vaecourse.evaluation import nats_to_bits_per_dim
from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.linear_vae import LinearVAE
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import elbo_terms, implied_variance, kl_weight_for, negative_elbo

F64 = torch.float64
D, K, B = 12, 3, 8  # pixels, latents and images of the deep model
LOG_2PI = math.log(2 * math.pi)
LEVELS = pytest.mark.parametrize("level", [0, 3, 128, 130, 255])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def squares_and_kl(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of squares at the draw that `negative_elbo` makes of generator(), and KL by torch; per image."""
    q = vae.posterior(x)
    loc, scale = q.base_dist.loc, q.base_dist.scale
    z = loc + scale * torch.randn(1, *loc.shape, dtype=F64, generator=generator())[0]
    prior = Independent(Normal(torch.zeros_like(loc), torch.ones_like(loc)), 1)
    return (x - vae.decode(z)).square().sum(1), kl_divergence(q, prior)


def gradient(value: Tensor, module: nn.Module) -> Tensor:
    found = torch.autograd.grad(value, list(module.parameters()), retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def eigenvalues(x: Tensor) -> np.ndarray:
    """Of the covariance, descending, from numpy's singular values."""
    centred = x.numpy() - x.numpy().mean(0)
    return np.linalg.svd(centred, compute_uv=False) ** 2 / len(x)


def exact_loss(model: LinearVAE, x: Tensor, *, variance: float, beta: float = 1.0) -> float:
    """Average objective of these networks under another noise."""
    model.likelihood = GaussianLikelihood(math.sqrt(variance))
    with torch.no_grad():
        return -model.exact_elbo_terms(x).elbo(beta).mean().item()


def assert_close(found: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    assert (found - expected).norm() <= rtol * expected.norm()
    assert expected.norm() > 0


# --- from the density to the squared error ---------------------------------------------------------------


@pytest.mark.equation("eq-gaussian-reconstruction")
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_reconstruction_term_matches_scipy_at_the_same_draws(scale):
    vae, x = deep_vae(scale), images()
    with torch.no_grad():
        found = elbo_terms(vae, x, num_samples=5, generator=generator()).nll
        q = vae.posterior(x).base_dist
        params = vae.decode(q.loc + q.scale * torch.randn(5, B, K, dtype=F64, generator=generator()))
    densities = [
        [stats.multivariate_normal.logpdf(x[n], params[i, n], scale**2) for n in range(B)] for i in range(5)
    ]
    squares = (x - params).square().sum(-1).mean(0)
    np.testing.assert_allclose(found, -np.mean(densities, 0), rtol=1e-10)
    np.testing.assert_allclose(
        found, squares / (2 * scale**2) + D / 2 * math.log(2 * math.pi * scale**2), rtol=1e-10
    )


def expectation(function, loc: float, scale: float) -> float:
    """Over a Gaussian code of one dimension, by scipy's adaptive quadrature."""

    def integrand(t: float) -> float:
        return stats.norm.pdf(t) * function(loc + scale * t)

    return integrate.quad(integrand, -9, 9, epsabs=1e-9, epsrel=1e-9)[0]


def one_latent() -> tuple[VAE, Tensor, float, float]:
    vae, x = deep_vae(0.3, dim=4, latent_dim=1), images(1, 4)
    with torch.no_grad():
        loc, log_scale = (value.item() for value in vae.encode(x))
    return vae, x, loc, math.exp(log_scale)


def decoded(vae: VAE, z: float) -> np.ndarray:
    with torch.no_grad():
        return vae.decode(torch.full((1, 1), z, dtype=F64))[0].numpy()


@pytest.mark.equation("eq-gaussian-reconstruction")
def test_reconstruction_term_matches_quadrature_over_the_code():
    vae, x, loc, scale = one_latent()
    nats = -expectation(lambda z: stats.norm.logpdf(x[0].numpy(), decoded(vae, z), 0.3).sum(), loc, scale)
    squares = expectation(lambda z: np.square(x[0].numpy() - decoded(vae, z)).sum(), loc, scale)
    assert squares / (2 * 0.3**2) + 2 * math.log(2 * math.pi * 0.3**2) == pytest.approx(nats, rel=1e-8)
    draws = torch.cat(
        [elbo_terms(vae, x.expand(50_000, 4), generator=generator(seed)).nll.detach() for seed in range(2)]
    )
    error = draws.std().item() / math.sqrt(len(draws))
    assert draws.mean().item() == pytest.approx(nats, abs=4.5 * error)
    assert error < 0.01 * abs(nats)


@pytest.mark.equation("eq-expected-square")
def test_expected_square_is_bias_plus_spread_for_a_curved_decoder():
    """The left side by adaptive quadrature, the moments of the decoded code by a Gauss-Hermite rule."""
    vae, x, loc, _ = one_latent()
    scale = 0.6  # wide enough to feel the curvature
    left = expectation(lambda z: np.square(x[0].numpy() - decoded(vae, z)).sum(), loc, scale)
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    outputs = np.stack([decoded(vae, loc + scale * t) for t in nodes])
    covariance = np.cov(outputs.T, aweights=weights, ddof=0)
    bias = np.square(x[0].numpy() - np.average(outputs, axis=0, weights=weights)).sum()
    assert left == pytest.approx(bias + np.trace(covariance), rel=1e-7)
    assert np.trace(covariance) > 1e-2 * left
    at_the_mean = np.square(x[0].numpy() - decoded(vae, loc)).sum()
    assert abs(at_the_mean - bias) > 1e-3 * bias  # the decoder is curved: mu(E z) is not E mu(z)


# --- the mean in place of a draw -------------------------------------------------------------------------


def bound_at_the_mean_code(model: LinearVAE, x: Tensor) -> Tensor:
    """The "ELBO" of the exact posterior with z replaced by its mean, by torch's distributions."""
    q = model.exact_posterior(x)
    prior = MultivariateNormal(torch.zeros_like(q.loc[0]), torch.eye(q.loc.shape[1], dtype=F64))
    density = Independent(model.likelihood.distribution(model.decode(q.loc)), 1)
    return density.log_prob(x) - kl_divergence(q, prior)


@pytest.mark.equation("eq-mean-code-excess")
@pytest.mark.parametrize("scale", [0.2, 0.9, 2.0])
def test_mean_code_exceeds_the_evidence_of_a_linear_model(scale):
    torch.manual_seed(0)
    model, x = LinearVAE(D, K, scale=scale).double(), images()
    with torch.no_grad():
        nn.init.normal_(model.decoder.weight)
        excess = bound_at_the_mean_code(model, x) - model.log_likelihood(x)
        covariance = model.exact_posterior(x).covariance_matrix[0]
    weight = model.weight.detach().numpy()
    trace = np.trace(weight @ covariance.numpy() @ weight.T) / (2 * scale**2)
    shares = 0.5 * np.sum(1 - np.linalg.eigvalsh(covariance.numpy()))
    np.testing.assert_allclose(excess, np.full(B, trace), rtol=1e-8)
    assert shares == pytest.approx(trace, rel=1e-10)
    assert abs(covariance - covariance.diag().diag()).max() > 1e-3 * covariance.diag().max()


@pytest.mark.equation("eq-mean-code-excess")
def test_mean_code_exceeds_the_evidence_of_digits_by_almost_half_a_nat_a_latent(digits_x):
    model = LinearVAE.from_ppca(digits_x, 10)
    with torch.no_grad():
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
def test_weighted_loss_has_the_gradient_of_an_elbo(a, w):
    vae, x = deep_vae(math.sqrt(implied_variance(a, w))), images()
    squares, kl = squares_and_kl(vae, x)
    elbo = negative_elbo(vae, x, generator=generator())
    assert_close(gradient((a * squares + w * kl).mean(), vae), w * gradient(elbo, vae))


@pytest.mark.equation("eq-weighted-loss")
@pytest.mark.parametrize(("a", "w"), [(1.0, 1.0), (1 / D, 0.2)])
def test_weighted_loss_is_the_scaled_elbo_without_its_constant(a, w):
    """The constant is what images cost that are predicted exactly."""
    variance = implied_variance(a, w)
    vae, x = deep_vae(math.sqrt(variance)), images()
    with torch.no_grad():
        squares, kl = squares_and_kl(vae, x)
        constant = GaussianLikelihood(math.sqrt(variance)).nll(x, x).mean()
        elbo = negative_elbo(vae, x, generator=generator())
    assert (a * squares + w * kl).mean().item() == pytest.approx(w * (elbo - constant).item(), rel=1e-10)


@pytest.mark.equation("eq-implied-variance")
@pytest.mark.parametrize(("a", "w"), [(1.0, 1.0), (1 / D, 0.7)])
def test_no_other_variance_gives_the_gradients(a, w):
    """A search for the noise whose ELBO has parallel gradients."""
    vae, x = deep_vae(), images()
    squares, kl = squares_and_kl(vae, x)
    target = gradient((a * squares + w * kl).mean(), vae)

    def misalignment(log_variance: float) -> float:
        vae.likelihood = GaussianLikelihood(math.exp(log_variance / 2))
        found = gradient(negative_elbo(vae, x, generator=generator()), vae)
        return (found / found.norm() - target / target.norm()).norm().item()

    best = optimize.minimize_scalar(misalignment, bounds=(-5, 6), method="bounded", options={"xatol": 1e-9})
    assert math.exp(best.x) == pytest.approx(implied_variance(a, w), rel=1e-6)
    assert math.exp(best.x) == pytest.approx(w / (2 * a), rel=1e-6)


def kl_terms(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (1 + logvar - mu.square() - logvar.exp())


def mean_sum(y, t, mu, logvar, w):
    return (y - t).square().mean() + w * kl_terms(mu, logvar).sum(1).mean()


def mean_mean(y, t, mu, logvar, w):
    return (y - t).square().mean() + w * kl_terms(mu, logvar).mean()


def batch_sum(y, t, mu, logvar, w):
    return (y - t).square().mean() + w * kl_terms(mu, logvar).sum()


def assert_loss_assumes(loss, w: float, variance: float) -> None:
    """Its gradients, at deep networks, are a combination of two; and proportional to those of an ELBO."""
    vae, x = deep_vae(math.sqrt(variance)), images()
    squares, kl = squares_and_kl(vae, x)
    loc, log_scale = vae.encode(x)
    z = loc + log_scale.exp() * torch.randn(1, B, K, dtype=F64, generator=generator())[0]
    found = gradient(loss(vae.decode(z), x, loc, 2 * log_scale, w), vae)
    terms = torch.stack([gradient(squares.mean(), vae), gradient(kl.mean(), vae)], 1)
    (a, kl_weight), *_ = np.linalg.lstsq(terms.numpy(), found.numpy(), rcond=None)
    assert kl_weight / (2 * a) == pytest.approx(variance, rel=1e-9)
    assert_close(found, float(kl_weight) * gradient(negative_elbo(vae, x, generator=generator()), vae))


def diagnosed_variance(loss, w: float, **sizes) -> float:
    diagnosis = diagnose_loss(
        lambda y, t, mu, logvar: loss(y, t, mu, logvar, w), **{"data_dim": 784, "latent_dim": 20, **sizes}
    )
    assert diagnosis.family == "gaussian"
    return diagnosis.scale**2


@pytest.mark.equation("eq-mean-sum-variance")
@pytest.mark.parametrize(("w", "variance"), [(1.0, 392.0), (0.01, 3.92), (1 / 784, 0.5)])
def test_mean_over_pixels_assumes_half_their_number(w, variance):
    assert diagnosed_variance(mean_sum, w) == pytest.approx(variance, rel=1e-4)
    assert_loss_assumes(mean_sum, w, w * D / 2)
    weight = kl_weight_for(data_dim=784, latent_dim=20, scale=math.sqrt(variance))
    assert weight == pytest.approx(w, rel=1e-12)


@pytest.mark.equation("eq-mean-mean-variance")
@pytest.mark.parametrize(("w", "variance"), [(1.0, 19.6), (0.1, 1.96)])
def test_mean_over_latents_divides_the_variance_by_their_number(w, variance):
    assert diagnosed_variance(mean_mean, w) == pytest.approx(variance, rel=1e-4)
    assert_loss_assumes(mean_mean, w, w * D / (2 * K))
    weight = kl_weight_for(data_dim=784, latent_dim=20, scale=math.sqrt(variance), kl="mean")
    assert weight == pytest.approx(w, rel=1e-12)


@pytest.mark.equation("eq-batch-sum-variance")
@pytest.mark.parametrize(("batch_size", "variance"), [(8, 3136.0), (32, 12544.0)])
def test_kl_summed_over_the_batch_multiplies_the_variance_by_its_size(batch_size, variance):
    assert diagnosed_variance(batch_sum, 1.0, batch_size=batch_size) == pytest.approx(variance, rel=1e-4)


@pytest.mark.equation("eq-batch-sum-variance")
@pytest.mark.parametrize("w", [1.0, 0.02])
def test_kl_summed_over_the_batch_has_the_gradient_of_that_elbo(w):
    assert_loss_assumes(batch_sum, w, w * B * D / 2)


# --- beta, and the variance that is reported -------------------------------------------------------------


@pytest.mark.equation("eq-effective-beta")
@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_weight_of_the_kl_acts_as_a_variance(beta):
    vae, other, x = deep_vae(0.4), deep_vae(0.4 * math.sqrt(beta)), images()
    weighted = negative_elbo(vae, x, beta=beta, generator=generator())
    plain = negative_elbo(other, x, generator=generator())
    assert_close(gradient(weighted, vae), beta * gradient(plain, other))


@pytest.mark.equation("eq-effective-beta")
def test_objectives_with_equal_products_differ_by_a_constant():
    """Over a random walk of the networks, the difference to 5 times the other objective does not change."""
    vae, other, x = deep_vae(0.4), deep_vae(0.4 * math.sqrt(5)), images()
    differences, losses = [], []
    with torch.no_grad():
        for step in range(4):
            weighted = negative_elbo(vae, x, beta=5, generator=generator(step))
            losses.append(weighted.item())
            differences.append((weighted - 5 * negative_elbo(other, x, generator=generator(step))).item())
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


@pytest.mark.equation("eq-reported-variance")
def test_best_variance_for_fixed_networks_is_the_mean_squared_error():
    vae, x = deep_vae(), images()

    def loss(log_variance: float) -> float:
        vae.likelihood = GaussianLikelihood(math.exp(log_variance / 2))
        return negative_elbo(vae, x, generator=generator()).item()

    best = optimize.minimize_scalar(loss, bounds=(-6, 6), method="bounded", options={"xatol": 1e-9})
    squares, _ = squares_and_kl(vae, x)
    assert math.exp(best.x) == pytest.approx(squares.mean().item() / D, rel=1e-6)


@pytest.mark.equation("eq-reported-variance")
def test_variance_of_digits_that_beta_hides(digits_x):
    model = LinearVAE.from_ppca(digits_x, 6, scale=math.sqrt(0.5))
    pairs = {(0.5, 1.0): 41.2741, (0.1, 5.0): 8.3432, (0.1, 1.0): 6.9789}
    for (variance, beta), nats in pairs.items():
        assert exact_loss(model, digits_x, variance=variance, beta=beta) == pytest.approx(nats, abs=6e-5)
    best = optimize.minimize_scalar(
        lambda v: exact_loss(model, digits_x, variance=math.exp(v)), bounds=(-6, 1), method="bounded"
    )
    assert math.exp(best.x) == pytest.approx(0.0672141, rel=1e-4)
    assert best.fun == pytest.approx(4.75721, abs=6e-6)
    with torch.no_grad():
        loc, log_scale = model.encode(digits_x)
        spread = torch.trace(model.weight @ (2 * log_scale[0]).exp().diag() @ model.weight.T).item()
        mse = ((digits_x - model.decode(loc)).square().sum(1).mean().item() + spread) / 64
    assert mse == pytest.approx(0.0672141, abs=6e-8)


# --- what the optimiser sees -----------------------------------------------------------------------------


@pytest.mark.equation("eq-two-gradients")
def test_kl_gives_the_decoder_nothing():
    """The decoder's gradient does not change with w; that of its last bias is 2 a times the mean error."""
    vae, x = deep_vae(), images()
    squares, kl = squares_and_kl(vae, x)
    for a, w in [(1.0, 0.0), (0.3, 1.0), (0.3, 50.0)]:
        loss = (a * squares + w * kl).mean()
        assert_close(gradient(loss, vae.decoder), a * gradient(squares.mean(), vae.decoder), 1e-12)
        q = vae.posterior(x).base_dist
        z = q.loc + q.scale * torch.randn(1, B, K, dtype=F64, generator=generator())[0]
        errors = (vae.decode(z) - x).mean(0)
        (found,) = torch.autograd.grad(loss, vae.decoder.network[-1].bias, retain_graph=True)
        assert_close(found, 2 * a * errors)


@pytest.mark.equation("eq-two-gradients")
@pytest.mark.parametrize(("a", "w"), [(1.0, 1.0), (0.3, 20.0)])
def test_encoder_gets_both_gradients(a, w):
    """What J adds to a times the squared error pulls its last bias to the prior: w mean, w (variance - 1)."""
    vae, x = deep_vae(), images()
    squares, kl = squares_and_kl(vae, x)
    bias = vae.encoder.network[-1].bias
    (total,) = torch.autograd.grad((a * squares + w * kl).mean(), bias, retain_graph=True)
    (fit,) = torch.autograd.grad(squares.mean(), bias, retain_graph=True)
    q = vae.posterior(x).base_dist
    pull = torch.cat([q.loc.mean(0), (q.variance - 1).mean(0)]).detach()
    assert_close(total - a * fit, w * pull)
    assert fit.norm() > 0


def adam_path(factor: float, eps: float, steps: int = 25) -> Tensor:
    vae, x = deep_vae(), images()
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01, eps=eps)
    path = []
    for step in range(steps):
        optimizer.zero_grad()
        (factor * negative_elbo(vae, x, generator=generator(step))).backward()
        optimizer.step()
        path.append(nn.utils.parameters_to_vector(vae.parameters()).detach().clone())
    return torch.stack(path)


@pytest.mark.equation("eq-adam-scale")
@pytest.mark.parametrize("factor", [1 / 784, 0.1, 30.0])
def test_adam_sees_a_factor_of_the_loss_in_epsilon_only(factor):
    scaled, same = adam_path(factor, 1e-2), adam_path(1.0, 1e-2 / factor)
    torch.testing.assert_close(scaled, same, rtol=1e-8, atol=1e-8)
    plain = adam_path(1.0, 1e-2)
    assert (scaled - plain).abs().max() > 1e-3  # an epsilon this large is felt
    torch.testing.assert_close(adam_path(factor, 1e-15), adam_path(1.0, 1e-15), rtol=1e-6, atol=1e-6)


# --- linear VAEs -----------------------------------------------------------------------------------------


@pytest.mark.equation("eq-linear-distortion")
@pytest.mark.parametrize(("latent_dim", "variance", "beta"), [(6, 0.5, 1), (10, 0.05, 4), (20, 0.02, 1)])
def test_best_linear_vae_floods_small_eigenvalues(digits_x, latent_dim, variance, beta):
    model = LinearVAE.from_ppca(digits_x, latent_dim, scale=math.sqrt(variance), beta=beta)
    with torch.no_grad():
        nll = model.exact_elbo_terms(digits_x).nll.mean().item()
        draws = squares_and_kl(model, digits_x)[0]
    distortion = (nll - 32 * math.log(2 * math.pi * variance)) * 2 * variance
    values = eigenvalues(digits_x)
    expected = np.minimum(values[:latent_dim], beta * variance).sum() + values[latent_dim:].sum()
    assert distortion == pytest.approx(expected, rel=1e-9)
    error = draws.std().item() / math.sqrt(len(draws))
    assert draws.mean().item() == pytest.approx(expected, abs=4.5 * error)


@pytest.mark.equation("eq-learned-variance")
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 5.0])
def test_learned_variance_of_a_linear_vae(digits_x, beta):
    """A search over the variance, with the best networks for each; the rule is the fixed point it finds."""

    def loss(log_variance: float) -> float:
        model = LinearVAE.from_ppca(digits_x, 10, scale=math.exp(log_variance / 2), beta=beta)
        return exact_loss(model, digits_x, variance=math.exp(log_variance), beta=beta)

    best = optimize.minimize_scalar(loss, bounds=(-6, 0), method="bounded", options={"xatol": 1e-8})
    variance, values = math.exp(best.x), eigenvalues(digits_x)
    num_active = int((values[:10] > beta * variance).sum())
    assert variance == pytest.approx(values[num_active:].sum() / (64 - num_active * beta), rel=1e-6)
    if beta == 1:
        assert variance == pytest.approx(LinearVAE.from_ppca(digits_x, 10).likelihood.scale ** 2, rel=1e-6)


@pytest.mark.equation("eq-learned-variance")
@pytest.mark.parametrize("beta", [0.5, 2.0, 5.0])
def test_learned_variance_leaves_no_gradient(digits_x, beta):
    """A joint optimum of networks and noise, at the variance that repeated use of the rule settles at."""
    values, num_active = eigenvalues(digits_x), 10
    for _ in range(10):
        variance = values[num_active:].sum() / (64 - num_active * beta)
        num_active = int((values[:10] > beta * variance).sum())
    best = LinearVAE.from_ppca(digits_x, 10, scale=math.sqrt(variance), beta=beta)
    model = LinearVAE(64, 10, scale="learned").double()
    model.load_state_dict(best.state_dict(), strict=False)
    with torch.no_grad():
        model.likelihood.log_scale.fill_(0.5 * math.log(variance))
    terms = model.exact_elbo_terms(digits_x)
    size = gradient(terms.nll.mean(), model.encoder).norm()
    assert gradient(-terms.elbo(beta).mean(), model).norm() < 1e-8 * size


# --- the variance from the errors ------------------------------------------------------------------------


@pytest.mark.equation("eq-log-mse-objective")
def test_optimal_scale_makes_the_loss_a_logarithm_of_the_error():
    x = images()
    fixed, optimal = deep_vae(), deep_vae("optimal").train()

    def loss(log_variance: float) -> float:
        fixed.likelihood = GaussianLikelihood(math.exp(log_variance / 2))
        return negative_elbo(fixed, x, generator=generator()).item()

    smallest = optimize.minimize_scalar(loss, bounds=(-6, 6), method="bounded", options={"xatol": 1e-9}).fun
    squares, kl = squares_and_kl(fixed, x)
    mse = squares.mean().item() / D
    objective = D / 2 * (math.log(mse) + 1 + LOG_2PI) + kl.mean().item()
    assert objective == pytest.approx(smallest, rel=1e-10)
    assert negative_elbo(optimal, x, generator=generator()).item() == pytest.approx(smallest, rel=1e-10)


@pytest.mark.equation("eq-log-mse-objective")
def test_optimal_scale_has_the_gradient_of_the_logarithm():
    x, vae, optimal = images(), deep_vae(), deep_vae("optimal").train()
    squares, kl = squares_and_kl(vae, x)
    expected = gradient(D / 2 * squares.mean().log() + kl.mean(), vae)
    assert_close(gradient(negative_elbo(optimal, x, generator=generator()), optimal), expected)


def smallest_nll(x: Tensor, params: Tensor) -> float:
    """Nats of these images under the best scale that they can share, by a search."""
    return optimize.minimize_scalar(
        lambda log_scale: gaussian_nll(x, params, math.exp(log_scale)).sum().item(),
        bounds=(-8, 4),
        method="bounded",
        options={"xatol": 1e-8},
    ).fun


@pytest.mark.equation("eq-per-image-variance")
def test_a_variance_for_every_image_never_scores_worse():
    x = images()
    params = x + torch.linspace(0.1, 1, B, dtype=F64)[:, None] * torch.randn(
        B, D, dtype=F64, generator=generator()
    )
    mse = (x - params).square().mean(1)
    saved = smallest_nll(x, params) - sum(
        smallest_nll(x[n : n + 1], params[n : n + 1]) for n in range(B)
    )  # by searches alone
    assert saved > 0.1 * B
    gap = mse.mean().log() - mse.log().mean()
    assert B * D / 2 * gap.item() == pytest.approx(saved, rel=1e-7)


@pytest.mark.equation("eq-per-image-variance")
def test_a_variance_for_every_image_saves_nothing_when_errors_are_equal():
    x = images()
    errors = torch.randn(B, D, dtype=F64, generator=generator())
    params = x + 0.3 * errors / errors.square().mean(1, keepdim=True).sqrt()
    single = sum(smallest_nll(x[n : n + 1], params[n : n + 1]) for n in range(B))
    assert smallest_nll(x, params) == pytest.approx(single, rel=1e-9)
    params[0] += 0.05 * (params[0] - x[0])  # one image a little worse than the others
    single = sum(smallest_nll(x[n : n + 1], params[n : n + 1]) for n in range(B))
    assert smallest_nll(x, params) > single + 1e-3


@pytest.mark.equation("eq-per-image-variance")
def test_variance_from_the_scored_image_is_no_density():
    """Each decade of the error adds the same mass, so that no factor makes the integral 1."""

    def mass(low: float, high: float) -> float:
        def formula(log_error: float) -> float:
            error = torch.tensor([[math.exp(log_error)]], dtype=F64)
            return math.exp(log_error - gaussian_nll(error, torch.zeros_like(error), error).item())

        return 2 * integrate.quad(formula, math.log(low), math.log(high))[0]

    decades = [mass(10.0 ** -(k + 1), 10.0**-k) for k in range(12)]
    assert decades == pytest.approx([2 * math.log(10) * stats.norm.pdf(1)] * 12, rel=1e-8)
    assert sum(decades) > 1


@pytest.mark.equation("eq-constant-pixel")
def test_nll_of_a_pixel_that_is_hit_has_no_lower_bound():
    pixel = torch.full((1, 1), 0.7, dtype=F64)
    scales = [10.0**-k for k in range(0, 101, 20)]
    found = [gaussian_nll(pixel, pixel, scale).item() for scale in scales]
    assert found == pytest.approx([-stats.norm.logpdf(0.7, 0.7, scale) for scale in scales], rel=1e-12)
    steps = np.diff([value - math.log(scale) for value, scale in zip(found, scales, strict=True)])
    assert abs(steps).max() < 1e-9
    assert found[0] == pytest.approx(0.9189, abs=5e-5)
    assert found[-1] < -229


@pytest.mark.equation("eq-constant-pixel")
def test_soft_floor_bounds_the_nll_of_a_pixel_that_is_hit():
    likelihood, pixel = GaussianLikelihood("per_pixel"), torch.full((1, 1), 0.7, dtype=F64)

    def nats(raw: float) -> float:
        return likelihood.nll(pixel, torch.tensor([[0.7, raw]], dtype=F64)).item()

    values = [nats(raw) for raw in (2.0, -3.0, -6.0, -12.0, -20.0)]
    assert (np.diff(values) < 0).all()
    floor = -stats.norm.logpdf(0, scale=math.exp(-6))
    assert values[-1] > floor
    assert nats(-1e4) == pytest.approx(floor, abs=1e-12)
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
@pytest.mark.parametrize("scale", [0.001, 0.01, 0.3])
def test_dequantized_density_bounds_the_probability_of_a_level(level, scale):
    gap = log_bin_probability(level, 0.507, scale) - bound(stats.norm(0.507, scale), level)
    assert gap > 0
    if scale == 0.001:
        assert gap > 0.1
    if scale == 0.3:
        assert gap < 1e-4


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
    error = values.std().item() / math.sqrt(len(values))
    assert values.mean().item() == pytest.approx(bound(stats.norm(0.507, 0.001), 130), abs=4.5 * error)
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


@pytest.mark.equation("eq-bits-per-dimension")
def test_bits_per_dimension_are_a_code_length():
    """For a Gaussian of many levels, the mean code length of four pixels of its discretised self."""
    levels = np.arange(256)
    code = np.array([-log_bin_probability(level, 0.5, 0.1) for level in levels]) / math.log(2)
    probabilities = 2.0**-code
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)
    nats = np.array([-bound(stats.norm(0.5, 0.1), level) - math.log(256) for level in levels])
    bits = nats_to_bits_per_dim(4 * float(probabilities @ nats), 4)
    assert bits == pytest.approx(probabilities @ code, rel=1e-4)
    assert bits > probabilities @ code


@pytest.mark.equation("eq-bits-per-dimension")
def test_flat_density_costs_eight_bits_a_pixel():
    entropy = stats.randint(0, 256).entropy() / math.log(2)
    assert nats_to_bits_per_dim(0.0, 784) == pytest.approx(entropy, rel=1e-12)


@pytest.mark.equation("eq-uniform-bin")
def test_best_gaussian_for_one_bin_costs_a_quarter_of_a_bit():
    def bits(parameters: np.ndarray) -> float:
        loc, scale = (100 + parameters[0]) / 256, math.exp(parameters[1]) / 256
        return -bound(stats.norm(loc, scale), 100) / math.log(2)

    best = optimize.minimize(bits, [0.2, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-11})
    assert best.x[0] == pytest.approx(0.5, abs=1e-4)
    assert best.fun == pytest.approx(0.5 * math.log2(2 * math.pi * math.e / 12), abs=1e-8)
    assert best.fun == pytest.approx(0.2546, abs=5e-5)
