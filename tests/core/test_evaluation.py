import functools
import math

import pytest
import torch

from tests.core.examples import data, fitted_vae, generator
from vaecourse.evaluation import ActiveUnits, active_units, evaluate_elbo, nats_to_bits_per_dim, nll_estimate
from vaecourse.linear_vae import LinearVAE
from vaecourse.models import mlp_vae
from vaecourse.objectives import importance_weighted_bound, log_importance_weights

two_samples = functools.partial(nll_estimate, num_samples=2)


def shifted_vae() -> LinearVAE:
    """A linear VAE (D = 5, K = 2) whose q(z|x) is near, but not, the exact posterior."""
    model = fitted_vae(scale=0.4)
    with torch.no_grad():
        model.encoder.linear.bias += 0.4
        model.encoder.log_scale += 0.3
    return model.eval()


# --- evaluate_elbo ---------------------------------------------------------------------------------------


def test_evaluate_elbo_matches_closed_form():
    model, x = shifted_vae(), data(7, 5)
    terms = evaluate_elbo(model, x, num_samples=20_000, generator=generator())
    exact = model.exact_elbo_terms(x)
    torch.testing.assert_close(terms.kl, exact.kl)
    torch.testing.assert_close(terms.nll, exact.nll, rtol=0.02, atol=0.02)  # about 4 standard errors


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_evaluate_elbo_keeps_every_example_in_order_and_no_gradient(batch_size):
    model, x = shifted_vae(), data(7, 5)
    terms = evaluate_elbo(model, x, batch_size=batch_size)
    assert terms.nll.shape == (7,)
    assert not terms.nll.requires_grad and not terms.kl.requires_grad
    torch.testing.assert_close(terms.kl, evaluate_elbo(model, x).kl)  # free of noise, different for each x


# --- nll_estimate ----------------------------------------------------------------------------------------


def test_nll_estimate_tends_to_exact_likelihood_within_its_errors():
    model, x = shifted_vae(), data(40, 5)
    estimate = nll_estimate(model, x, num_samples=5000, generator=generator())
    exact = -model.log_likelihood(x).detach()
    assert estimate.standard_error < 0.01
    assert estimate.nats == pytest.approx(exact.mean().item(), abs=4 * estimate.standard_error)
    assert estimate.sampling_error == pytest.approx((exact.var() / 40).sqrt().item(), rel=0.05)
    assert estimate.sampling_error > 5 * estimate.standard_error


def test_nll_estimate_is_on_average_too_high():
    model, x = shifted_vae(), data(40, 5)
    exact = -model.log_likelihood(x).mean().item()
    estimates = torch.tensor([two_samples(model, x, generator=generator(s)).nats for s in range(50)])
    assert estimates.mean() - exact > 4 * estimates.std() / 50**0.5


def test_nll_estimate_standard_error_is_spread_over_seeds():
    model, x = shifted_vae(), data(20, 5)
    estimates = [nll_estimate(model, x, num_samples=300, generator=generator(s)) for s in range(200)]
    spread = torch.tensor([estimate.nats for estimate in estimates]).std().item()
    stated = torch.tensor([estimate.standard_error for estimate in estimates]).square().mean().sqrt().item()
    assert stated == pytest.approx(spread, rel=0.15)  # a standard deviation from 200 draws is good to 5 %


def test_nll_estimate_standard_error_vanishes_for_the_exact_posterior():
    x = data(50, 5)
    model = LinearVAE.from_ppca(x, 2)
    estimate = nll_estimate(model, x, num_samples=10, generator=generator())
    assert estimate.standard_error < 1e-6  # rounding of weights that are all equal
    assert estimate.nats == pytest.approx(-model.log_likelihood(x).mean().item(), abs=1e-9)


def test_nll_estimate_is_mean_of_bounds_with_an_error_by_the_delta_method():
    model, x = shifted_vae(), data(8, 5)
    estimate = nll_estimate(model, x, num_samples=6, generator=generator())
    bound = importance_weighted_bound(model, x, num_samples=6, generator=generator())
    torch.testing.assert_close(estimate.per_image, -bound.detach())
    assert estimate.nats == pytest.approx(-bound.mean().item())
    assert (estimate.num_samples, estimate.num_images) == (6, 8)
    weights = log_importance_weights(model, x, num_samples=6, generator=generator()).exp()
    relative = weights.var(0, correction=0) / 6 / weights.mean(0).square()
    assert estimate.standard_error == pytest.approx(relative.sum().sqrt().item() / 8, rel=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 5, 16, 64])
def test_nll_estimate_does_not_depend_on_chunking(chunk_size):
    # 8 images and 2 latents: each chunk takes a multiple of 16 numbers, so that torch draws the same ones
    model, x = shifted_vae(), data(8, 5)
    whole = nll_estimate(model, x, num_samples=64, chunk_size=64, generator=generator())
    chunked = nll_estimate(model, x, num_samples=64, chunk_size=chunk_size, generator=generator())
    torch.testing.assert_close(chunked.per_image, whole.per_image)
    assert chunked.standard_error == pytest.approx(whole.standard_error, rel=1e-9)


def test_nll_estimate_draws_as_many_samples_as_asked_for():
    """An uneven last chunk included."""
    seen = []
    model = shifted_vae()
    decode = model.decode
    model.decode = lambda z: (seen.append(len(z)), decode(z))[1]
    nll_estimate(model, data(3, 5), num_samples=25, chunk_size=10)
    assert seen == [10, 10, 5]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_nll_estimate_keeps_every_example_in_order(batch_size):
    model, x = LinearVAE.from_ppca(data(50, 5), 2).eval(), data(7, 5)  # the exact posterior leaves no noise
    estimate = two_samples(model, x, batch_size=batch_size)
    torch.testing.assert_close(estimate.per_image, -model.log_likelihood(x).detach())


def test_nll_estimate_survives_underflowing_weights():
    model = LinearVAE.from_ppca(data(50, 5), 2, scale=1e-3)
    estimate = nll_estimate(model, data(4, 5, seed=5), num_samples=20, generator=generator())
    assert estimate.nats > 1000
    assert math.isfinite(estimate.standard_error)


def test_nll_estimate_is_reproducible_given_generator():
    model, x = shifted_vae(), data(4, 5)
    first, again, other = (two_samples(model, x, generator=generator(s)).nats for s in (1, 1, 2))
    assert first == again != other


def test_nll_estimate_of_a_bernoulli_vae_is_below_its_negative_elbo():
    torch.manual_seed(0)
    model, x = mlp_vae(5, 2, hidden_dims=(8,)).double().eval(), data(50, 5).round()
    with torch.no_grad():
        model.encoder.network[-1].bias += 1.0  # a posterior far from the exact one
    negative_elbo = -evaluate_elbo(model, x, num_samples=500, generator=generator()).elbo().mean().item()
    assert nll_estimate(model, x, num_samples=500, generator=generator()).nats < negative_elbo - 0.1


# --- active units ----------------------------------------------------------------------------------------


@pytest.mark.equation("eq-activity")
@pytest.mark.parametrize(("scale", "beta"), [(0.5, 1.0), (0.3, 4.0), (0.9, 1.0)])
def test_active_units_match_linear_prediction(digits_x, scale, beta):
    """A_j = 1 - beta * scale^2 / lambda_j, and 0 where that is negative."""
    eigenvalues = torch.linalg.eigvalsh(torch.cov(digits_x.T, correction=0)).flip(0)[:8]
    units = active_units(LinearVAE.from_ppca(digits_x, 8, scale=scale, beta=beta), digits_x)
    torch.testing.assert_close(units.variances, (1 - beta * scale**2 / eigenvalues).clamp(min=0))
    assert units.count == (1 - beta * scale**2 / eigenvalues > 0.01).sum()


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 2), (0.5, 1), (1.0, 0)])
def test_active_units_counts_above_threshold(threshold, count):
    assert ActiveUnits(torch.tensor([0.0, 0.5, 0.7]), threshold).count == count


def test_active_units_uses_the_given_threshold(digits_x):
    model = LinearVAE.from_ppca(digits_x, 8, scale=0.5)
    assert active_units(model, digits_x, threshold=0.5).count < active_units(model, digits_x).count


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_active_units_does_not_depend_on_batches(batch_size):
    model, x = shifted_vae(), data(7, 5)
    variances = active_units(model, x, batch_size=batch_size).variances
    torch.testing.assert_close(variances, active_units(model, x).variances)


# --- bits per dimension ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nats", "data_dim", "levels", "bits"),
    [
        (0.0, 784, {}, 8.0),
        (0.0, 784, {"num_levels": 256}, 8.0),
        (784 * math.log(2), 784, {"num_levels": 256}, 9.0),
        (-784 * math.log(256), 784, {"num_levels": 256}, 0.0),
        (0.0, 784, {"num_levels": 255}, 7.99435),
        (10 * math.log(2), 10, {"num_levels": 1}, 1.0),
    ],
    ids=["default", "uniform", "one-bit-more", "certain", "divided-by-255", "probability"],
)
def test_nats_to_bits_per_dim_matches_hand_value(nats, data_dim, levels, bits):
    assert nats_to_bits_per_dim(nats, data_dim, **levels) == pytest.approx(bits, abs=5e-6)


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [0, -1])
@pytest.mark.parametrize("evaluate", [evaluate_elbo, two_samples, active_units], ids=["elbo", "nll", "units"])
def test_evaluation_rejects_batch_size_below_one(evaluate, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        evaluate(shifted_vae(), data(3, 5), batch_size=batch_size)


@pytest.mark.parametrize("evaluate", [evaluate_elbo, two_samples], ids=["elbo", "nll"])
def test_evaluation_rejects_empty_data(evaluate):
    with pytest.raises(ValueError, match=r"x must hold at least one example, got shape \(0, 5\)"):
        evaluate(shifted_vae(), data(0, 5))


@pytest.mark.parametrize("num_examples", [0, 1])
def test_active_units_rejects_fewer_than_two_examples(num_examples):
    with pytest.raises(ValueError, match=f"a variance needs at least two examples, got {num_examples}"):
        active_units(shifted_vae(), data(num_examples, 5))


@pytest.mark.parametrize(("num_samples", "chunk_size"), [(1, 10), (0, 10), (5, 0)])
def test_nll_estimate_rejects_too_few_samples(num_samples, chunk_size):
    message = f"num_samples must be at least 2, got {num_samples}" if chunk_size else "chunk_size must be at"
    with pytest.raises(ValueError, match=message):
        nll_estimate(shifted_vae(), data(3, 5), num_samples=num_samples, chunk_size=chunk_size)


@pytest.mark.parametrize(("data_dim", "num_levels"), [(0, 256), (-3, 256), (3, 0), (3, -1), (3, math.nan)])
def test_nats_to_bits_per_dim_rejects_nonpositive_arguments(data_dim, num_levels):
    with pytest.raises(ValueError, match=f"num_levels positive, got {data_dim} and {num_levels}"):
        nats_to_bits_per_dim(1.0, data_dim, num_levels=num_levels)


@pytest.mark.gpu
def test_nll_estimate_agrees_on_cpu_and_gpu(accelerator):
    model, x = shifted_vae().float(), data(40, 5).float()
    on_cpu = nll_estimate(model, x, num_samples=2000)
    on_device = nll_estimate(model.to(accelerator), x.to(accelerator), num_samples=2000)
    tolerance = 5 * math.hypot(on_cpu.standard_error, on_device.standard_error)  # other random numbers
    assert on_device.nats == pytest.approx(on_cpu.nats, abs=tolerance)
    assert on_device.per_image.device.type == "cpu"
