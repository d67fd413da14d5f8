"""The equations of the first chapter: regression with Gaussian noise, on small data made here."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.optim import SGD, Adam

from tests.book.oracles import F64, assert_mean, column, descend, flat, generator, gradient, smallest
from vaecourse.densities import gaussian_nll
from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.models import GaussianRegressor
from vaecourse.networks import mlp

N, D, P = 30, 2, 4  # points, outputs, inputs
LOG_2PI = math.log(2 * math.pi)
SCALES = pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])


# inputs (N, P), and targets (N, D) that are linear in them but for noise
numbers = generator()
X, WEIGHT, NOISE = (torch.randn(*s, dtype=F64, generator=numbers) for s in ((N, P), (P, D), (N, D)))
Y = X @ WEIGHT + 0.5 * NOISE


def regressor(scale: float | str = 1.0) -> GaussianRegressor:
    torch.manual_seed(0)
    return GaussianRegressor(mlp([P, 5, D], activation=nn.Tanh), GaussianLikelihood(scale)).double()


def total_nll(model: GaussianRegressor) -> Tensor:
    return model.likelihood.nll(Y, model(X)).sum()


def sum_of_squares(model: nn.Module) -> Tensor:
    return (model(X) - Y).square().sum()


def scaled_mean_of_squares(model: nn.Module) -> Tensor:
    return N * D * nn.functional.mse_loss(model(X), Y)


def density(x: float, loc: float, scale: float) -> float:
    return math.exp(-gaussian_nll(column(x), column(loc), scale).item())


# --- the density -----------------------------------------------------------------------------------------


@pytest.mark.equation("eq-gaussian-density")
@SCALES
def test_gaussian_density_matches_scipy_and_integrates_to_one(scale):
    points = [-2.0, 0.0, 0.7, 1.3]
    expected = stats.norm.pdf(points, 0.7, scale)
    assert [density(x, 0.7, scale) for x in points] == pytest.approx(expected, rel=1e-12)
    integral, _ = integrate.quad(density, 0.7 - 12 * scale, 0.7 + 12 * scale, args=(0.7, scale))
    assert integral == pytest.approx(1, abs=1e-9)


@pytest.mark.equation("eq-misplaced-parentheses")
def test_misplaced_parentheses_give_no_density():
    """Without a square on the difference the integral grows without bound; that of the density stays at 1."""
    loc, scale = 0.7, 0.5
    size = scale * math.sqrt(2 * math.pi)
    for reach in (5.0, 10.0, 20.0, 40.0):
        ends = loc - reach, loc + reach
        right, _ = integrate.quad(density, *ends, args=(loc, scale), points=[loc])
        wrong, _ = integrate.quad(lambda x: math.exp(-0.5 * (x - loc) / scale**2) / size, *ends)
        assert right == pytest.approx(1, abs=1e-9)
        assert wrong == pytest.approx(4 * scale**2 / size * math.sinh(reach / (2 * scale**2)), rel=1e-8)
    assert wrong > 1e16


# --- the loss --------------------------------------------------------------------------------------------


@pytest.mark.equation("eq-gaussian-nll", "eq-nll-mse", "eq-gradient-identity")
@SCALES
@pytest.mark.parametrize("error_of", [sum_of_squares, scaled_mean_of_squares])
def test_gaussian_nll_is_scaled_squared_error_plus_constant_and_so_is_its_gradient(scale, error_of):
    model = regressor(scale)
    nll, scaled = total_nll(model), error_of(model) / (2 * scale**2)
    torch.testing.assert_close(nll, scaled + N * D / 2 * math.log(2 * math.pi * scale**2))
    torch.testing.assert_close(gradient(nll, model), gradient(scaled, model), rtol=1e-10, atol=0)
    assert model.loss(X, Y).item() == pytest.approx(nll.item() / N)  # mean over points of sum over outputs


def minimiser(loss, *shape: int) -> np.ndarray:
    """The weights of the smallest loss, by scipy with torch's gradients."""

    def objective(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        weight = torch.from_numpy(numbers).reshape(shape).requires_grad_()
        value = loss(weight)
        return value.item(), torch.autograd.grad(value, weight)[0].numpy().ravel()

    start = np.zeros(math.prod(shape))
    return optimize.minimize(objective, start, jac=True, tol=1e-12).x.reshape(shape)


@SCALES
def test_gaussian_nll_minimiser_is_least_squares_at_any_scale(scale):
    # the factor lets one tolerance fit all scales
    found = minimiser(lambda weight: gaussian_nll(Y, X @ weight, scale).sum() * scale**2, P, D)
    np.testing.assert_allclose(found, np.linalg.lstsq(X.numpy(), Y.numpy(), rcond=None)[0], atol=1e-6)


# --- the scale -------------------------------------------------------------------------------------------


@pytest.mark.equation("eq-best-scale", "eq-profile-likelihood")
def test_best_scale_is_root_mean_squared_error_and_costs_half_a_nat_per_number():
    loc = regressor()(X).detach()
    found = smallest(lambda log_scale: gaussian_nll(Y, loc, math.exp(log_scale)).sum().item(), -4, 4)
    optimal = GaussianLikelihood("optimal").double()
    optimal.nll(Y, loc)
    mse = (loc - Y).square().mean().item()
    # flat at the minimum: sqrt of float64's eps
    assert [math.exp(found.x), optimal.scale.item()] == pytest.approx([math.sqrt(mse)] * 2, rel=1e-6)
    assert found.fun == pytest.approx(N * D / 2 * (math.log(mse) + 1 + LOG_2PI), rel=1e-12)
    data_term = gaussian_nll(Y, loc, math.sqrt(mse)) - D / 2 * (math.log(mse) + LOG_2PI)
    assert data_term.mean().item() == pytest.approx(D / 2)


@pytest.mark.equation("eq-rescaling")
@pytest.mark.parametrize(("factor", "dim", "nats"), [(255.0, 784, 4344), (0.1, 60, -138)])
def test_rescaling_data_shifts_nll_by_log_factor_per_number(factor, dim, nats):
    y, loc = torch.randn(2, 1, dim, dtype=F64, generator=generator())
    shift = (gaussian_nll(factor * y, factor * loc, factor * 0.3) - gaussian_nll(y, loc, 0.3)).item()
    assert shift == pytest.approx(dim * math.log(factor), rel=1e-10)
    assert shift == pytest.approx(nats, abs=0.5)


@pytest.mark.equation("eq-sample-error")
@pytest.mark.parametrize("scale", [0.1, 1.5])
def test_error_of_a_sample_exceeds_error_of_the_mean_by_its_variance(scale):
    sample = GaussianLikelihood(scale).sample(torch.zeros(100_000, D, dtype=F64), generator=generator())
    expected = Y[0].square().sum().item() + D * scale**2
    assert_mean((sample - Y[0]).square().sum(1), expected, num_errors=4)


# --- "just adjust the learning rate" ----------------------------------------------------------------------


def train(model: nn.Module, loss_of, kind: type[torch.optim.Optimizer], **options: float) -> Tensor:
    """Return the weights after 25 steps of a copy of the model."""
    model = copy.deepcopy(model)
    descend(kind(model.parameters(), **options), lambda _: loss_of(model), 25)
    return flat(model)


@pytest.mark.equation("eq-sgd-step")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_sgd_on_nll_takes_the_steps_of_sgd_on_squared_error(scale, momentum):
    model = regressor(scale)
    ours = train(model, total_nll, SGD, lr=2 * scale**2 * 1e-3, momentum=momentum)
    theirs = train(model, sum_of_squares, SGD, lr=1e-3, momentum=momentum)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert (ours - flat(model)).abs().max() > 0.1  # and they went somewhere


@pytest.mark.parametrize(("eps", "agrees"), [(1e-14, True), (1e-2, False)], ids=["tiny", "large"])
def test_adam_ignores_a_factor_only_as_its_eps_vanishes(eps, agrees):
    ours, theirs = (train(regressor(5.0), f, Adam, lr=1e-2, eps=eps) for f in (total_nll, sum_of_squares))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-8) == agrees


# --- a prior on the weights ------------------------------------------------------------------------------


@pytest.mark.equation("eq-ridge-map")
@pytest.mark.parametrize(("scale", "prior_scale"), [(0.5, 1.0), (2.0, 0.3)])
def test_ridge_is_maximum_a_posteriori(scale, prior_scale):
    y = Y[:, :1]

    def negative_log_posterior(weight: Tensor) -> Tensor:
        log_prior = -gaussian_nll(weight, torch.zeros_like(weight), prior_scale).sum()
        return gaussian_nll(y, X @ weight, scale).sum() - log_prior

    found = minimiser(negative_log_posterior, P, 1).ravel()
    ridge = Ridge(alpha=scale**2 / prior_scale**2, fit_intercept=False).fit(X.numpy(), y.numpy().ravel())
    np.testing.assert_allclose(found, ridge.coef_, atol=1e-6)
    free, *_ = np.linalg.lstsq(X.numpy(), y.numpy().ravel(), rcond=None)
    assert np.abs(found - free).max() > 1e-3  # the prior mattered


# --- a scale for each point ------------------------------------------------------------------------------


@pytest.mark.equation("eq-heteroscedastic-nll", "eq-heteroscedastic-gradient")
def test_heteroscedastic_nll_weighs_each_point_by_its_variance():
    y, (loc, log_scale) = Y[:, :1], torch.randn(2, N, 1, dtype=F64, generator=generator(1))
    loc.requires_grad_()
    variance = (2 * log_scale).exp()
    nll = gaussian_nll(y, loc, log_scale.exp()).sum()
    expected = (0.5 * torch.log(2 * math.pi * variance) + (y - loc) ** 2 / (2 * variance)).sum()
    torch.testing.assert_close(nll, expected, rtol=1e-12, atol=0)
    likelihood = GaussianLikelihood("per_pixel", min_log_scale=-40.0)  # a floor far below every scale
    per_pixel = likelihood.nll(y, torch.cat([loc, log_scale], dim=1)).sum()
    torch.testing.assert_close(per_pixel, nll, rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(nll, loc)
    torch.testing.assert_close(slope, (loc - y).detach() / variance, rtol=1e-12, atol=0)


# --- input checks of the regressor -----------------------------------------------------------------------


def test_regressor_rejects_flat_targets_and_empty_batches():
    with pytest.raises(ValueError, match=r"loc must have the shape of x.*x has \(30,\), loc has \(30, 2\)"):
        regressor().loss(X, Y[:, 0])
    with pytest.raises(ValueError, match=r"x must hold at least one example, got shape \(0, 4\)"):
        regressor().loss(X[:0], Y[:0])
