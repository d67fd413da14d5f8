"""The equations of the first chapter: regression with Gaussian noise, on small data made here."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from vaecourse.densities import gaussian_nll
from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.models import GaussianRegressor, mlp

F64 = torch.float64
N, D, P = 30, 2, 4  # points, outputs, inputs
LOG_2PI = math.log(2 * math.pi)
SCALES = pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])


def regression_data() -> tuple[Tensor, Tensor]:
    """Inputs (N, P) and noisy linear targets (N, D)."""
    generator = torch.Generator().manual_seed(0)
    x, weight, noise = (
        torch.randn(*shape, dtype=F64, generator=generator) for shape in ((N, P), (P, D), (N, D))
    )
    return x, x @ weight + 0.5 * noise


def regressor(scale: float | str = 1.0) -> GaussianRegressor:
    torch.manual_seed(0)
    return GaussianRegressor(mlp([P, 5, D], activation=nn.Tanh), GaussianLikelihood(scale)).double()


def total_nll(model: GaussianRegressor, x: Tensor, y: Tensor) -> Tensor:
    return model.likelihood.nll(y, model(x)).sum()


def sum_of_squares(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().sum()


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def density(x: float, loc: float, scale: float) -> float:
    return math.exp(-gaussian_nll(torch.tensor([x], dtype=F64), torch.tensor([loc], dtype=F64), scale).item())


# --- the density -----------------------------------------------------------------------------------------


@pytest.mark.equation("eq-gaussian-density")
@SCALES
def test_gaussian_density_integrates_to_one(scale):
    integral, _ = integrate.quad(density, 0.7 - 12 * scale, 0.7 + 12 * scale, args=(0.7, scale))
    assert integral == pytest.approx(1, abs=1e-9)


@pytest.mark.equation("eq-gaussian-density")
@SCALES
@pytest.mark.parametrize("x", [-2.0, 0.0, 0.7, 1.3])
def test_gaussian_density_matches_scipy(x, scale):
    assert density(x, 0.7, scale) == pytest.approx(stats.norm.pdf(x, 0.7, scale), rel=1e-12)


@pytest.mark.equation("eq-misplaced-parentheses")
def test_misplaced_parentheses_give_no_density():
    """Without a square on the difference the integral grows without bound; that of the density stays at 1."""
    loc, scale = 0.7, 0.5

    def misplaced(x: float) -> float:
        return math.exp(-0.5 * (x - loc) / scale**2) / (scale * math.sqrt(2 * math.pi))

    reaches = (5.0, 10.0, 20.0, 40.0)
    wrong = [integrate.quad(misplaced, loc - reach, loc + reach)[0] for reach in reaches]
    right = [
        integrate.quad(density, loc - reach, loc + reach, args=(loc, scale), points=[loc])[0]
        for reach in reaches
    ]
    # 4 scale / sqrt(2 pi) * sinh(reach / (2 scale**2)), which grows exponentially with the reach
    expected = [4 * scale / math.sqrt(2 * math.pi) * math.sinh(reach / (2 * scale**2)) for reach in reaches]
    assert wrong == pytest.approx(expected, rel=1e-8)
    assert wrong[-1] > 1e16
    assert right == pytest.approx([1.0] * 4, abs=1e-9)


# --- the loss --------------------------------------------------------------------------------------------


@pytest.mark.equation("eq-gaussian-nll")
@SCALES
def test_gaussian_nll_is_scaled_squared_error_plus_constant(scale):
    x, y = regression_data()
    model = regressor(scale)
    expected = sum_of_squares(model, x, y) / (2 * scale**2) + N * D / 2 * math.log(2 * math.pi * scale**2)
    torch.testing.assert_close(total_nll(model, x, y), expected)


@pytest.mark.equation("eq-nll-mse")
@SCALES
def test_gaussian_nll_is_scaled_mean_squared_error_plus_constant(scale):
    x, y = regression_data()
    model = regressor(scale)
    mse = nn.functional.mse_loss(model(x), y)
    expected = N * D * mse / (2 * scale**2) + N * D / 2 * math.log(2 * math.pi * scale**2)
    torch.testing.assert_close(total_nll(model, x, y), expected)


def test_regressor_loss_is_mean_over_points_of_sum_over_outputs():
    x, y = regression_data()
    model = regressor(0.3)
    assert model.loss(x, y).item() == pytest.approx(total_nll(model, x, y).item() / N)


@pytest.mark.equation("eq-gradient-identity")
@SCALES
def test_gaussian_nll_gradient_is_scaled_gradient_of_squared_error(scale):
    x, y = regression_data()
    model = regressor(scale)
    ours = gradient(total_nll(model, x, y), model)
    of_sse = gradient(sum_of_squares(model, x, y), model) / (2 * scale**2)
    of_mse = gradient(nn.functional.mse_loss(model(x), y), model) * N * D / (2 * scale**2)
    torch.testing.assert_close(ours, of_sse, rtol=1e-10, atol=0)
    torch.testing.assert_close(ours, of_mse, rtol=1e-10, atol=0)


@SCALES
def test_gaussian_nll_minimiser_is_least_squares_at_any_scale(scale):
    x, y = regression_data()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = torch.from_numpy(flat).reshape(P, D).requires_grad_()
        loss = gaussian_nll(y, x @ weight, scale).sum() * scale**2  # a factor, so that one tolerance fits all
        return loss.item(), torch.autograd.grad(loss, weight)[0].numpy().ravel()

    found = optimize.minimize(objective, np.zeros(P * D), jac=True, tol=1e-12).x
    expected, *_ = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)
    np.testing.assert_allclose(found.reshape(P, D), expected, atol=1e-6)


# --- the scale -------------------------------------------------------------------------------------------


@pytest.mark.equation("eq-best-scale")
def test_best_scale_is_root_mean_squared_error():
    x, y = regression_data()
    model = regressor()
    with torch.no_grad():
        loc = model(x)
        best = math.sqrt((loc - y).square().sum().item() / (N * D))
        found = optimize.minimize_scalar(
            lambda log_scale: gaussian_nll(y, loc, math.exp(log_scale)).sum().item(),
            bounds=(-4, 4),
            method="bounded",
            options={"xatol": 1e-10},
        )
        optimal = GaussianLikelihood("optimal").double()
        optimal.nll(y, loc)
    assert math.exp(found.x) == pytest.approx(best, rel=1e-6)  # flat at the minimum: sqrt of float64's eps
    assert optimal.scale.item() == pytest.approx(best, rel=1e-6)


@pytest.mark.equation("eq-best-scale")
def test_data_term_at_best_scale_is_half_a_nat_per_number():
    x, y = regression_data()
    loc = regressor()(x).detach()
    best = (loc - y).square().mean().sqrt()
    data_term = gaussian_nll(y, loc, best) - D * (best.log() + LOG_2PI / 2)
    assert data_term.mean().item() == pytest.approx(D / 2)


@pytest.mark.equation("eq-profile-likelihood")
def test_profile_likelihood_is_log_mean_squared_error():
    x, y = regression_data()
    loc = regressor()(x).detach()
    found = optimize.minimize_scalar(
        lambda log_scale: gaussian_nll(y, loc, math.exp(log_scale)).sum().item(), bracket=(-1, 1)
    )
    mse = (loc - y).square().mean().item()
    assert found.fun == pytest.approx(N * D / 2 * (math.log(mse) + 1 + LOG_2PI), rel=1e-12)


@pytest.mark.equation("eq-rescaling")
@pytest.mark.parametrize("factor", [255.0, 0.1])
def test_rescaling_data_shifts_nll_by_log_factor_per_number(factor):
    x, y = regression_data()
    loc, scale = regressor()(x).detach(), 0.3
    shift = gaussian_nll(factor * y, factor * loc, factor * scale).sum() - gaussian_nll(y, loc, scale).sum()
    assert shift.item() == pytest.approx(N * D * math.log(factor), rel=1e-10)


def test_rescaling_an_image_by_255_shifts_nll_by_4344_nats():
    zeros = torch.zeros(1, 784, dtype=F64)
    shift = gaussian_nll(255 * zeros, zeros, 255.0) - gaussian_nll(zeros, zeros, 1.0)
    assert shift.item() == pytest.approx(4344, abs=0.5)


@pytest.mark.equation("eq-sample-error")
@pytest.mark.parametrize("scale", [0.1, 1.5])
def test_error_of_a_sample_exceeds_error_of_the_mean_by_its_variance(scale):
    _, y = regression_data()
    target, loc = y[:1].expand(100_000, D), torch.zeros(100_000, D, dtype=F64)
    sample = GaussianLikelihood(scale).sample(loc, generator=torch.Generator().manual_seed(0))
    errors = (sample - target).square().sum(1)
    expected = y[0].square().sum() + D * scale**2
    assert (errors.mean() - expected).abs() < 4 * errors.std() / 100_000**0.5


# --- "just adjust the learning rate" ----------------------------------------------------------------------


def train(model: nn.Module, loss_of, optimizer: torch.optim.Optimizer, num_steps: int = 25) -> Tensor:
    x, y = regression_data()
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()
    return weights(model)


@pytest.mark.equation("eq-sgd-step")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_sgd_on_nll_takes_the_steps_of_sgd_on_squared_error(scale, momentum):
    model = regressor(scale)
    other, start = copy.deepcopy(model), weights(model)
    rate = 2 * scale**2 * 1e-3
    ours = train(model, total_nll, torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum))
    theirs = train(
        other,
        sum_of_squares,
        torch.optim.SGD(other.parameters(), lr=rate / (2 * scale**2), momentum=momentum),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert (ours - start).abs().max() > 0.1  # and they went somewhere


@pytest.mark.parametrize(("eps", "agrees"), [(1e-14, True), (1e-2, False)], ids=["tiny", "large"])
def test_adam_ignores_a_factor_only_as_its_eps_vanishes(eps, agrees):
    model = regressor(5.0)
    other = copy.deepcopy(model)
    ours = train(model, total_nll, torch.optim.Adam(model.parameters(), lr=1e-2, eps=eps))
    theirs = train(other, sum_of_squares, torch.optim.Adam(other.parameters(), lr=1e-2, eps=eps))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-8) == agrees


# --- a prior on the weights ------------------------------------------------------------------------------


@pytest.mark.equation("eq-ridge-map")
@pytest.mark.parametrize(("scale", "prior_scale"), [(0.5, 1.0), (2.0, 0.3)])
def test_ridge_is_maximum_a_posteriori(scale, prior_scale):
    x, y = regression_data()
    y = y[:, :1]

    def negative_log_posterior(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = torch.from_numpy(flat).unsqueeze(1).requires_grad_()
        loss = gaussian_nll(y, x @ weight, scale).sum()
        loss = loss + gaussian_nll(weight, torch.zeros_like(weight), prior_scale).sum()
        return loss.item(), torch.autograd.grad(loss, weight)[0].numpy().ravel()

    found = optimize.minimize(negative_log_posterior, np.zeros(P), jac=True, tol=1e-10).x
    ridge = Ridge(alpha=scale**2 / prior_scale**2, fit_intercept=False).fit(x.numpy(), y.numpy().ravel())
    np.testing.assert_allclose(found, ridge.coef_, atol=1e-6)
    free, *_ = np.linalg.lstsq(x.numpy(), y.numpy().ravel(), rcond=None)
    assert np.abs(found - free).max() > 1e-3  # the prior mattered


# --- a scale for each point ------------------------------------------------------------------------------


def heteroscedastic() -> tuple[Tensor, Tensor, Tensor]:
    """Targets, locations and scales, each (N, 1)."""
    _, y = regression_data()
    generator = torch.Generator().manual_seed(1)
    loc, log_scale = (torch.randn(N, 1, dtype=F64, generator=generator) for _ in range(2))
    return y[:, :1], loc, log_scale.exp()


@pytest.mark.equation("eq-heteroscedastic-nll")
def test_heteroscedastic_nll_weighs_each_point_by_its_variance():
    y, loc, scale = heteroscedastic()
    expected = sum(
        0.5 * math.log(2 * math.pi * s**2) + (y_n - m) ** 2 / (2 * s**2)
        for y_n, m, s in zip(
            y.flatten().tolist(), loc.flatten().tolist(), scale.flatten().tolist(), strict=True
        )
    )
    assert gaussian_nll(y, loc, scale).sum().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.equation("eq-heteroscedastic-nll")
def test_heteroscedastic_nll_is_what_a_per_pixel_likelihood_computes():
    y, loc, scale = heteroscedastic()
    likelihood = GaussianLikelihood("per_pixel", min_log_scale=-40.0)  # a floor far below every scale
    nll = likelihood.nll(y, torch.cat([loc, scale.log()], dim=1))
    torch.testing.assert_close(nll.sum(), gaussian_nll(y, loc, scale).sum(), rtol=1e-12, atol=0)


@pytest.mark.equation("eq-heteroscedastic-gradient")
def test_heteroscedastic_gradient_is_residual_over_variance():
    y, loc, scale = heteroscedastic()
    loc.requires_grad_()
    (ours,) = torch.autograd.grad(gaussian_nll(y, loc, scale).sum(), loc)
    torch.testing.assert_close(ours, (loc.detach() - y) / scale**2, rtol=1e-12, atol=0)


# --- input checks of the regressor -----------------------------------------------------------------------


def test_regressor_rejects_flat_targets():
    x, y = regression_data()
    with pytest.raises(ValueError, match=r"loc must have the shape of x.*x has \(30,\), loc has \(30, 2\)"):
        regressor().loss(x, y[:, 0])


def test_regressor_rejects_empty_batch():
    x, y = regression_data()
    with pytest.raises(ValueError, match=r"x must hold at least one example, got shape \(0, 4\)"):
        regressor().loss(x[:0], y[:0])
