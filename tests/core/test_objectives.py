import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, distributions, nn

from tests.core.examples import EVERY_LIKELIHOOD, F32, F64, data, fitted_vae, generator, linear_vae, one
from vaecourse import objectives
from vaecourse.densities import gaussian_nll
from vaecourse.divergences import kl_standard_normal
from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.models import mlp_vae
from vaecourse.objectives import elbo_terms, importance_weighted_bound, log_importance_weights, negative_elbo


def within_standard_errors(draws: Tensor, expected: Tensor | float, count: float = 4.5) -> bool:
    error = draws.std(0) / len(draws) ** 0.5
    return bool(((draws.mean(0) - expected).abs() <= count * error).all())


# --- the terms and their signs ---------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "expected"), [((), -3.5), ((1.0,), -3.5), ((4.0,), -5.0), ((0.0,), -3.0)])
def test_elbo_matches_hand_value(weight, expected):
    terms = objectives.ElboTerms(nll=torch.tensor([3.0]), kl=torch.tensor([0.5]))
    assert terms.elbo(*weight).tolist() == [expected]


@pytest.mark.equation("eq-elbo-terms")
def test_elbo_terms_matches_closed_form():
    model, x = linear_vae(), data(3, 5)
    exact = model.exact_elbo_terms(x)
    with torch.no_grad():  # 400 draws, one for each copy of the data
        draws = elbo_terms(model, x.repeat(400, 1), num_samples=50, generator=generator())
    assert within_standard_errors(draws.nll.reshape(400, 3), exact.nll)
    torch.testing.assert_close(draws.kl.reshape(400, 3), exact.kl.expand(400, 3))


def test_elbo_terms_averages_over_samples():
    model, x = linear_vae(), data(3, 5)
    several = elbo_terms(model, x, num_samples=6, generator=generator()).nll
    eps = torch.randn(6, 3, 2, dtype=F64, generator=generator())
    loc, log_scale = model.encode(x)
    singles = [gaussian_nll(x, model.decode(loc + log_scale.exp() * e), 0.6) for e in eps]
    torch.testing.assert_close(several, torch.stack(singles).mean(0))


def test_elbo_terms_averages_over_the_number_of_samples_asked_for():
    """The variance of the estimate falls as 1 / num_samples."""
    model, x, numbers = linear_vae(), data(1, 5).expand(20_000, 5), generator()
    variances = [elbo_terms(model, x, num_samples=k, generator=numbers).nll.var().item() for k in (1, 4)]
    assert variances[0] / variances[1] == pytest.approx(4, rel=0.15)  # two variances, each to 2 %


@pytest.mark.parametrize("num_samples", [1, 3])
def test_elbo_terms_are_per_example(num_samples):
    terms = elbo_terms(linear_vae(), data(7, 5), num_samples=num_samples)
    assert terms.nll.shape == terms.kl.shape == (7,)


@pytest.mark.parametrize(("options", "beta"), [({}, 1), ({"beta": 1.0}, 1), ({"beta": 0.3}, 0.3)], ids=str)
def test_negative_elbo_is_batch_mean(options, beta):
    model, x = linear_vae(), data(3, 5)
    terms = elbo_terms(model, x, generator=generator())
    loss = negative_elbo(model, x, generator=generator(), **options)
    assert loss.item() == pytest.approx((terms.nll + beta * terms.kl).sum().item() / 3)


@pytest.mark.parametrize("function", [elbo_terms, importance_weighted_bound, log_importance_weights])
def test_noise_is_reproducible_given_generator(function):
    model, x = linear_vae(), data(3, 5)
    first, again, other = (function(model, x, num_samples=2, generator=generator(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@EVERY_LIKELIHOOD
def test_negative_elbo_gradient_reaches_every_parameter(make):
    torch.manual_seed(0)
    model = mlp_vae(6, 2, hidden_dims=(5,), likelihood=make())
    negative_elbo(model, data(8, 6).float()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


# --- the bound and its gap -------------------------------------------------------------------------------


@pytest.mark.equation("eq-elbo-gap")
def test_elbo_gap_is_kl_to_the_exact_posterior():
    """log p - ELBO = KL(q || p(z|x)), both sides in closed form."""
    model, x = linear_vae(), data(6, 5)
    loc, log_scale = model.encode(x)
    q = distributions.MultivariateNormal(loc, scale_tril=torch.diag_embed(log_scale.exp()))
    gap = distributions.kl_divergence(q, model.exact_posterior(x))
    torch.testing.assert_close(model.log_likelihood(x) - model.exact_elbo_terms(x).elbo(), gap)
    assert gap.min() > 0.1


@pytest.mark.equation("eq-elbo-gap")
def test_elbo_gap_is_zero_and_importance_weights_are_constant_for_the_exact_posterior():
    """p(x, z) / p(z|x) is p(x), whatever z: each single weight is the answer."""
    model, x = fitted_vae(), data(6, 5, seed=4)
    torch.testing.assert_close(model.exact_elbo_terms(x).elbo(), model.log_likelihood(x))
    log_weights = log_importance_weights(model, x, num_samples=9, generator=generator())
    torch.testing.assert_close(log_weights, model.log_likelihood(x).expand(9, 6))


def expected_log_weights(model, x: Tensor, num_samples: int) -> Tensor:
    loc, log_scale = (part.to(x.dtype) for part in model.encode(x))
    q, prior = distributions.Normal(loc, log_scale.exp()), distributions.Normal(0.0, 1.0)
    eps = torch.randn((num_samples, *loc.shape), dtype=x.dtype, generator=generator())
    z = loc + log_scale.exp() * eps
    return (prior.log_prob(z) - q.log_prob(z)).sum(-1) - model.likelihood.nll(x, model.decode(z))


def test_log_importance_weights_matches_torch_distributions():
    model, x = linear_vae(), data(4, 5)
    log_weights = log_importance_weights(model, x, num_samples=3, generator=generator())
    torch.testing.assert_close(log_weights, expected_log_weights(model, x, 3))


def test_mean_importance_weight_is_unbiased():
    model, x = linear_vae(), data(3, 5)
    log_weights = log_importance_weights(model, x, num_samples=200_000, generator=generator())
    assert within_standard_errors(log_weights.exp(), model.log_likelihood(x).exp())


def test_log_importance_weights_keep_the_noise_of_a_narrow_posterior():
    """With a scale of e^-20 float32 rounds loc + scale * eps to loc; log q must still hold eps."""
    model = linear_vae().float()
    nn.init.constant_(model.encoder.log_scale, -20.0)
    nn.init.constant_(model.encoder.linear.bias, 3.0)
    x = data(2, 5)
    single = log_importance_weights(model, x.float(), num_samples=2000, generator=generator(1))
    double = log_importance_weights(model.double(), x, num_samples=2000, generator=generator(1))
    assert single.std(0).min() > 0.5
    # the noise differs between dtypes: compare means, whose standard error is sqrt(0.5 * 2 / 2000)
    torch.testing.assert_close(single.double().mean(0), double.mean(0), rtol=0, atol=5 * 0.0224 * 2**0.5)


def test_importance_weighted_bound_at_one_sample_is_elbo_draw():
    model, x = linear_vae(), data(4, 5)
    bound = importance_weighted_bound(model, x.repeat(20_000, 1), num_samples=1, generator=generator())
    assert within_standard_errors(bound.reshape(20_000, 4), model.exact_elbo_terms(x).elbo())


@pytest.mark.equation("eq-importance-weighted-bound")
def test_importance_weighted_bound_is_log_mean_weight():
    model, x = linear_vae(), data(4, 5)
    weights = log_importance_weights(model, x, num_samples=7, generator=generator()).exp()
    bound = importance_weighted_bound(model, x, num_samples=7, generator=generator())
    torch.testing.assert_close(bound, weights.mean(0).log())


def test_importance_weighted_bound_survives_underflowing_weights():
    model, x = linear_vae(scale=1e-3), data(4, 5)
    assert not log_importance_weights(model, x, num_samples=7).exp().any()
    assert importance_weighted_bound(model, x, num_samples=7).isfinite().all()


@pytest.mark.equation("eq-importance-weighted-bound")
def test_importance_weighted_bound_bounds_log_evidence_and_rises_with_samples():
    model, x, numbers = linear_vae(), data(3, 5), generator()
    exact = model.log_likelihood(x).mean()
    bounds, errors = [], []
    for k in (1, 5, 50, 500):
        with torch.no_grad():
            draws = importance_weighted_bound(model, x.repeat(400, 1), num_samples=k, generator=numbers)
        means = draws.reshape(400, 3).mean(1)
        bounds.append(means.mean().item())
        errors.append(means.std().item() / 400**0.5)
    assert bounds == sorted(bounds)
    assert all(bound <= exact + 4 * error for bound, error in zip(bounds, errors, strict=True))
    assert exact - bounds[0] > 1  # there was a gap to close
    assert exact - bounds[-1] < 0.02 * (exact - bounds[0]) + 4 * errors[-1]


# --- reparameterisation ----------------------------------------------------------------------------------


def gradient_draws(loc: float, scale: float, count: int) -> tuple[Tensor, Tensor]:
    """Single-sample gradients of E z^2 with respect to loc and log_scale, one for each row of a batch.

    The model's "nll" is z^2, so that every gradient is known: E z^2 = loc^2 + scale^2.
    """
    codes = tuple(one(code).repeat(count, 1).requires_grad_() for code in (loc, math.log(scale)))
    square = SimpleNamespace(nll=lambda x, params: params.square().sum(-1))
    model = SimpleNamespace(likelihood=square, encode=lambda x: codes, decode=lambda z: z)
    nll = elbo_terms(model, torch.zeros(count, 1), generator=generator()).nll.sum()
    by_loc, by_log_scale = torch.autograd.grad(nll, codes)
    return by_loc[:, 0], by_log_scale[:, 0]


@pytest.mark.equation("eq-reparameterisation")
def test_reparameterised_gradient_matches_analytic_gradient():
    loc, scale = 0.7, 0.4
    by_loc, by_log_scale = gradient_draws(loc, scale, 200_000)
    assert within_standard_errors(by_loc, 2 * loc)
    assert within_standard_errors(by_log_scale, 2 * scale**2)


def test_score_function_gradient_has_same_mean_but_larger_variance():
    loc, scale, count = 0.7, 0.4, 200_000
    eps = torch.randn(count, dtype=F64, generator=generator(1))
    score = (loc + scale * eps).square() * eps / scale  # f(z) d log q / d loc
    by_loc, _ = gradient_draws(loc, scale, count)
    assert within_standard_errors(score, 2 * loc)
    assert by_loc.var().item() == pytest.approx(4 * scale**2, rel=0.02)
    assert score.var() > 5 * by_loc.var()


# --- implied variance ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recon_weight", "kl_weight", "variance"),
    [(0.5, 1, 1), (1, 1, 0.5), (1 / 784, 1, 392), (1 / 784, 1 / 20, 19.6), (1 / 12288, 2.5e-4, 1.536)],
    ids=["half-sse", "sse", "mean-mse", "mean-mse-mean-kl", "antixk"],
)
def test_implied_variance_matches_hand_value(recon_weight, kl_weight, variance):
    assert objectives.implied_variance(recon_weight, kl_weight) == pytest.approx(variance, rel=1e-12)


def test_implied_variance_gives_gradients_of_the_weighted_loss():
    """a * SSE + w * KL has the gradient of w * (-ELBO) at that variance, with shared noise."""
    recon_weight, kl_weight = 0.3, 0.07
    likelihood = GaussianLikelihood(objectives.implied_variance(recon_weight, kl_weight) ** 0.5)
    vae = mlp_vae(6, 2, hidden_dims=(5,), likelihood=likelihood).double()
    x, parameters = data(8, 6), list(vae.parameters())
    loss = kl_weight * negative_elbo(vae, x, generator=generator())
    loc, log_scale = vae.encode(x)
    z = loc + log_scale.exp() * torch.randn(1, 8, 2, dtype=F64, generator=generator())[0]
    sse = (x - vae.decode(z)).square().sum(1).mean()
    weighted = recon_weight * sse + kl_weight * kl_standard_normal(loc, log_scale).mean()
    ours, theirs = (torch.autograd.grad(objective, parameters) for objective in (loss, weighted))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("which", ["recon_weight", "kl_weight"])
def test_implied_variance_rejects_nonpositive_weight(which, bad):
    weights = {"recon_weight": 1.0, "kl_weight": 1.0, which: bad}
    with pytest.raises(ValueError, match=f"{which} must be a positive number, got {bad}"):
        objectives.implied_variance(**weights)


# --- bad input, compilation ------------------------------------------------------------------------------


def test_importance_weights_of_16_bit_codes_are_computed_in_float32():
    """Densities of prior and q nearly cancel; 16 bits would leave an error of some hundredths of a nat."""
    torch.manual_seed(0)
    model, x = mlp_vae(6, 50, hidden_dims=(5,)), data(8, 6).float()
    rounded = SimpleNamespace(  # layers put out bf16, as under autocast; everything else is as it was
        likelihood=model.likelihood,
        encode=lambda x: tuple(part.bfloat16() for part in model.encode(x)),
        decode=lambda z: model.decode(z.float()).bfloat16(),
    )
    log_weights = log_importance_weights(rounded, x, num_samples=20, generator=generator())
    assert log_weights.dtype == F32
    torch.testing.assert_close(log_weights, expected_log_weights(rounded, x, 20), rtol=0, atol=1e-3)


@pytest.mark.parametrize("function", [elbo_terms, log_importance_weights, importance_weighted_bound])
@pytest.mark.parametrize("num_samples", [0, -1])
def test_objective_rejects_too_few_samples(function, num_samples):
    with pytest.raises(ValueError, match=f"num_samples must be at least 1, got {num_samples}"):
        function(linear_vae(), data(3, 5), num_samples=num_samples)


def test_negative_elbo_rejects_empty_batch():
    with pytest.raises(ValueError, match=r"x must hold at least one example, got shape \(0, 5\)"):
        negative_elbo(linear_vae(), data(0, 5))


def test_negative_elbo_rejects_unscaled_pixels():
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\], got .*255"):
        negative_elbo(mlp_vae(5, 2), torch.full((3, 5), 255.0))


def test_negative_elbo_rejects_overflowing_encoder():
    model = linear_vae()
    nn.init.constant_(model.encoder.log_scale, math.inf)
    with pytest.raises(ValueError, match=r"must be finite"):
        negative_elbo(model, data(3, 5))


def test_compiled_negative_elbo_equals_eager():
    torch.compiler.reset()
    model, x = mlp_vae(6, 2, hidden_dims=(5,)).double(), data(8, 6)
    compiled = torch.compile(negative_elbo, backend="eager", fullgraph=True)
    losses = []
    for function in (negative_elbo, compiled):
        torch.manual_seed(0)  # a generator cannot enter a graph
        losses.append(function(model, x))
    torch.testing.assert_close(*losses, rtol=1e-13, atol=0)
