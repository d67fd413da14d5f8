import math

import pytest
import torch
from scipy import optimize, stats
from torch import distributions

from tests.core.examples import F32, F64, LIKELIHOODS, data, generator, normal
from vaecourse import densities, likelihoods
from vaecourse.likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood


def trained_optimal() -> GaussianLikelihood:
    likelihood = GaussianLikelihood("optimal")
    likelihood.nll(data(50, 4), data(50, 4, seed=9))
    return likelihood.eval()


# the learned scale in float64, the optimal one already estimated
ROWS = LIKELIHOODS | {
    "gaussian-learned": lambda: GaussianLikelihood("learned").double(),
    "gaussian-optimal": trained_optimal,
}
EVERY_LIKELIHOOD = pytest.mark.parametrize("make", ROWS.values(), ids=ROWS)


def matching(likelihood: Likelihood, *lead: int, data_dim: int = 4) -> torch.Tensor:
    """What a network for this likelihood might put out."""
    return normal(*lead, data_dim * likelihood.num_params)


# --- what every likelihood promises ----------------------------------------------------------------------


@EVERY_LIKELIHOOD
def test_nll_and_mean_match_own_distribution(make):
    likelihood = make()
    x, params = data(5, 4), matching(likelihood, 3, 5)
    if isinstance(likelihood, BernoulliLikelihood):
        x = x.round()
    distribution = likelihood.distribution(params)
    torch.testing.assert_close(likelihood.nll(x, params), -distribution.log_prob(x).sum(-1))
    torch.testing.assert_close(likelihood.mean(params), distribution.mean)


@EVERY_LIKELIHOOD
@pytest.mark.parametrize("logit", [-30.0, -2.0, -1e-3, 0.0, 1e-5, 0.5, 40.0])
def test_sample_has_the_distribution(make, logit):
    """Kolmogorov-Smirnov against the quantile function; a count for bits."""
    likelihood = make()
    n = 50_000
    params = torch.full((n, likelihood.num_params), logit, dtype=F64)
    sample = likelihood.sample(params, generator=generator())[:, 0]
    distribution = likelihood.distribution(params[:1])
    if isinstance(likelihood, BernoulliLikelihood):
        p = 1 / (1 + math.exp(-logit))
        assert set(sample.unique().tolist()) <= {0.0, 1.0}
        assert sample.mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5 + 1e-9)
        return
    if isinstance(likelihood, likelihoods.ContinuousBernoulliLikelihood):
        assert sample.min() >= 0 and sample.max() <= 1
        below = sample if abs(logit) < 1e-4 else torch.expm1(logit * sample) / math.expm1(logit)
    else:
        below = distribution.cdf(sample.unsqueeze(1))
    assert stats.kstest(below.detach().flatten().numpy(), "uniform").pvalue > 1e-3


@EVERY_LIKELIHOOD
def test_sample_is_reproducible_given_generator(make):
    likelihood = make()
    params = matching(likelihood, 5)
    first, again, other = (likelihood.sample(params, generator=generator(s)) for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@EVERY_LIKELIHOOD
def test_sample_carries_no_gradient(make):
    likelihood = make()
    sample = likelihood.sample(matching(likelihood, 5).requires_grad_())
    assert sample.shape == (5, 4) and not sample.requires_grad


@EVERY_LIKELIHOOD
def test_nll_gradient_matches_finite_difference(make):
    likelihood = make()
    x, params = data(3, 4), matching(likelihood, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda params: likelihood.nll(x, params), params)


@EVERY_LIKELIHOOD
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_nll_of_half_precision_is_computed_in_float32(make, dtype):
    likelihood = make()
    x, params = data(5, 4).to(dtype), matching(likelihood, 5).to(dtype)
    nll = likelihood.float().nll(x, params)
    assert nll.dtype == F32
    torch.testing.assert_close(nll, likelihood.nll(x.float(), params.float()), rtol=1e-6, atol=1e-6)


@EVERY_LIKELIHOOD
def test_bfloat16_params_stay_near_float32(make):
    likelihood = make().float()
    x, params = data(5, 784).float(), matching(likelihood, 5, data_dim=784).float()
    nll, exact = likelihood.nll(x, params.bfloat16()), likelihood.nll(x, params)
    # 8 bits: a log_scale of 3 moves by up to 0.006, hence its pixel's squared error by 1.2 %
    torch.testing.assert_close(nll, exact, rtol=2e-2, atol=0.5)


@EVERY_LIKELIHOOD
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiled_nll_equals_eager(make, training):
    torch.compiler.reset()
    eager, compiled = (make().train(training) for _ in range(2))
    x, params = data(5, 4), matching(eager, 5)
    nll = torch.compile(compiled.nll, backend="eager", fullgraph=True)(x, params)
    torch.testing.assert_close(nll, eager.nll(x, params), rtol=1e-14, atol=1e-14)


@EVERY_LIKELIHOOD
def test_nll_rejects_transposed_params(make):
    likelihood = make()
    with pytest.raises(ValueError, match=r"must have the shape of x.*x has \(5, 4\)"):
        likelihood.nll(data(5, 4), normal(4, 5 * likelihood.num_params))


def test_unfinished_subclass_says_what_it_must_define():
    class Unfinished(Likelihood):
        def nll(self, x, params): ...

    message = "abstract class Unfinished with abstract methods distribution, sample"
    with pytest.raises(TypeError, match=message):
        Unfinished()


def test_densities_have_one_address():
    assert [name for name in likelihoods.__all__ if name.islower()] == []


# --- fixed and learned scale -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "variance"),
    [(GaussianLikelihood(0.3), 0.09), (likelihoods.LaplaceLikelihood(0.3), 2 * 0.09)],
    ids=["standard-deviation", "laplace-b"],
)
def test_scale_is_what_its_name_says(likelihood, variance):
    assert likelihood.distribution(torch.zeros(1)).variance.item() == pytest.approx(variance)


def test_learned_scale_gradient_vanishes_at_root_mean_squared_error():
    x, loc = data(20, 4), normal(20, 4)
    likelihood = GaussianLikelihood("learned").double()
    mse = (x - loc).square().mean()
    for factor, sign in ((0.5, -1), (1.0, 0), (2.0, 1)):
        likelihood.log_scale.data = (factor * mse.sqrt()).log()
        (gradient,) = torch.autograd.grad(likelihood.nll(x, loc).mean(), likelihood.log_scale)
        assert gradient.abs() < 1e-12 if sign == 0 else gradient.sign() == sign


def test_learned_scale_starts_at_one():
    assert GaussianLikelihood("learned").scale.item() == 1


# --- optimal scale ---------------------------------------------------------------------------------------


@pytest.mark.equation("eq-profile-likelihood")
def test_optimal_scale_nll_is_profile_likelihood_and_minimal():
    x, loc = data(20, 4), normal(20, 4)
    nll, mse = GaussianLikelihood("optimal").nll(x, loc).sum(), (x - loc).square().mean()
    torch.testing.assert_close(nll, 20 * 4 / 2 * (mse.log() + 1 + math.log(2 * math.pi)))

    def of_scale(log_scale: float) -> float:
        return densities.gaussian_nll(x, loc, math.exp(log_scale)).sum().item()

    best = optimize.minimize_scalar(of_scale, bounds=(-5, 5), options={"xatol": 1e-9})
    assert nll.item() == pytest.approx(best.fun, rel=1e-12)


@pytest.mark.equation("eq-profile-likelihood")
def test_optimal_scale_gradient_is_that_of_log_mse_with_and_without_detaching():
    """Envelope theorem: the likelihood detaches its scale."""
    x, loc = data(20, 4), normal(20, 4).requires_grad_()
    mse = (x - loc).square().mean()
    expected = torch.autograd.grad(20 * 4 / 2 * mse.log(), loc, retain_graph=True)
    losses = [densities.gaussian_nll(x, loc, scale) for scale in (mse.sqrt(), mse.sqrt().detach())]
    for nll in (GaussianLikelihood("optimal").nll(x, loc), *losses):
        gradient = torch.autograd.grad(nll.sum(), loc, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_optimal_scale_is_average_of_first_batches():
    likelihood = GaussianLikelihood("optimal")
    batches = [(data(5, 4, seed=s), normal(5, 4, seed=s)) for s in range(6)]
    for x, loc in batches:
        likelihood.nll(x, loc)
    mse = sum((x - loc).square().mean().item() for x, loc in batches) / 6
    assert likelihood.eval().scale.item() == pytest.approx(mse**0.5, rel=1e-6)  # kept in float32


def test_optimal_scale_forgets_old_batches():
    """After many batches each new one weighs 1 %: 500 of them leave e^-5 of the past."""
    likelihood = GaussianLikelihood("optimal")
    x = torch.zeros(1, 1)
    for error, repeats in ((10.0, 200), (1.0, 500)):
        for _ in range(repeats):
            likelihood.nll(x, torch.full((1, 1), error))
    assert likelihood.eval().scale.item() ** 2 == pytest.approx(1 + 99 * 0.99**500, rel=1e-4)


def test_optimal_scale_does_not_move_in_evaluation():
    likelihood = trained_optimal()
    before = likelihood.scale.item()
    x = data(5, 4)
    nll = likelihood.nll(x, x + 100)
    assert likelihood.scale.item() == before
    torch.testing.assert_close(nll, densities.gaussian_nll(x, x + 100, before))


def test_optimal_scale_is_not_spoiled_by_a_bad_batch():
    likelihood = GaussianLikelihood("optimal")
    x = data(5, 4)
    likelihood.nll(x, x + 2)
    with pytest.raises(ValueError, match="params must be finite, got nan"):
        likelihood.nll(x, x * math.nan)
    with pytest.raises(ValueError, match="params must have the shape of x"):
        likelihood.nll(x, x[:, :1])
    assert likelihood.scale.item() == pytest.approx(2)
    assert likelihood.num_updates.item() == 1


def test_optimal_scale_travels_with_the_state_dict():
    fresh = GaussianLikelihood("optimal")
    fresh.load_state_dict(trained_optimal().state_dict())
    assert fresh.eval().scale.item() == trained_optimal().scale.item()


def test_optimal_scale_refuses_evaluation_before_training():
    with pytest.raises(RuntimeError, match="estimated from training batches and none has been seen"):
        GaussianLikelihood("optimal").eval().nll(data(5, 4), data(5, 4))


# --- per-pixel scale -------------------------------------------------------------------------------------


def test_per_pixel_scale_reads_loc_first_then_log_scale():
    distribution = GaussianLikelihood("per_pixel").distribution(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert distribution.loc.tolist() == [[1.0, 2.0]]
    # far above its soft floor of -6, softplus adds e^-9 at most
    torch.testing.assert_close(distribution.scale.log(), torch.tensor([[3.0, 4.0]]), rtol=0, atol=2e-4)


@pytest.mark.parametrize("floor", [-6.0, -2.0])
def test_per_pixel_scale_bounds_nll_of_perfect_reconstruction(floor):
    """Without the floor a constant pixel drives the nll below any bound."""
    likelihood = GaussianLikelihood("per_pixel", min_log_scale=floor)
    params = torch.tensor([[0.0, -3.0], [0.0, -30.0], [0.0, -300.0]])
    nll = likelihood.nll(torch.zeros(3, 1), params).tolist()
    assert nll == sorted(nll, reverse=True)
    assert nll[-1] == pytest.approx(floor + 0.5 * math.log(2 * math.pi), abs=1e-6)


def test_per_pixel_scale_floor_is_soft():
    """At the floor softplus gives log 2 more, and still half of the gradient."""
    params = torch.tensor([[0.0, -6.0]], dtype=F64, requires_grad=True)
    log_scale = GaussianLikelihood("per_pixel").distribution(params).scale.log()
    (gradient,) = torch.autograd.grad(log_scale.sum(), params)
    assert log_scale.item() == pytest.approx(-6 + math.log(2))
    assert gradient.tolist() == [[0.0, pytest.approx(0.5)]]


def test_per_pixel_scale_has_no_shared_scale():
    with pytest.raises(RuntimeError, match="depends on the input"):
        _ = GaussianLikelihood("per_pixel").scale


def test_per_pixel_scale_rejects_odd_network_output():
    with pytest.raises(ValueError, match=r"must emit loc and log_scale.*odd size: \(2, 3\)"):
        GaussianLikelihood("per_pixel").nll(data(2, 3), normal(2, 3))


# --- continuous Bernoulli --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("logit", [-200.0, -1e-4, -1e-6, 0.0, 1e-4, 200.0])
def test_continuous_bernoulli_sample_quantiles_match_hand_value(dtype, logit, monkeypatch):
    """A draw is the quantile function at u: check it through the cumulative distribution."""
    u = torch.linspace(0, 1 - 2.0**-24, 1001, dtype=dtype)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: u)
    x = likelihoods.ContinuousBernoulliLikelihood().sample(torch.full_like(u, logit)).double()
    assert x.min() >= 0 and x.max() <= 1
    level = u.double() if logit <= 0 else 1 - u.double()  # positive logits mirror the draw
    below = torch.expm1(logit * x) / math.expm1(logit) if logit else x
    torch.testing.assert_close(below, level, rtol=0, atol=2e-5 if dtype == F32 else 1e-8)


def test_continuous_bernoulli_mean_is_not_sigmoid():
    likelihood, logits = likelihoods.ContinuousBernoulliLikelihood(), torch.tensor([[2.0]], dtype=F64)
    assert likelihood.mean(logits).item() == pytest.approx(0.5 + 0.5 / math.tanh(1) - 0.5, abs=1e-12)
    assert abs(likelihood.mean(logits) - logits.sigmoid()) > 0.2


# --- bad arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0, 0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("family", [GaussianLikelihood, likelihoods.LaplaceLikelihood])
def test_likelihood_rejects_nonpositive_scale(family, scale):
    with pytest.raises(ValueError, match=rf"scale .*must be .*positive.*, got {scale}"):
        family(scale)


@pytest.mark.parametrize("scale", ["optimum", "", "Learned"])
def test_gaussian_likelihood_rejects_unknown_word(scale):
    with pytest.raises(ValueError, match=f"scale must be a positive number.*got {scale!r}"):
        GaussianLikelihood(scale)


@pytest.mark.gpu
@EVERY_LIKELIHOOD
def test_likelihood_agrees_on_cpu_and_gpu(make, accelerator):
    likelihood = make().float()
    x, params = data(5, 784).float(), matching(likelihood, 5, data_dim=784).float()
    expected = likelihood.nll(x, params)
    nll = likelihood.to(accelerator).nll(x.to(accelerator), params.to(accelerator)).cpu()
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-3)  # another summation order
    assert isinstance(likelihood.distribution(params.to(accelerator)), distributions.Distribution)
