import math
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from mpmath import mpf
from scipy import integrate, stats
from torch import distributions

from tests.core.examples import DTYPES, F32, F64, generator, normal, one
from vaecourse.divergences import kl_monte_carlo, kl_standard_normal

tiny = st.floats(-15, 0).map(lambda power: float(np.float32(10.0**power)))
near_switch = st.integers(-200, 200).map(lambda n: float(np.float32(n / 1000)))  # where the series takes over
log_scales = st.one_of(
    st.floats(-20, 20, width=32, allow_subnormal=False), tiny, tiny.map(lambda value: -value), near_switch
)
locs = st.one_of(st.floats(-100, 100, width=32, allow_subnormal=False), tiny, st.just(0.0))


def scale_term(log_scale: float) -> mpf:
    """What the scale contributes: (exp(2 l) - 1 - 2 l) / 2."""
    return (mpmath.expm1(2 * mpf(log_scale)) - 2 * mpf(log_scale)) / 2


# --- against independent implementations -----------------------------------------------------------------


@pytest.mark.equation("eq-kl-closed-form")
def test_kl_standard_normal_matches_torch_distributions():
    loc, log_scale = normal(5, 3, seed=0), normal(5, 3, seed=1)
    q, p = distributions.Normal(loc, log_scale.exp()), distributions.Normal(torch.zeros(3), torch.ones(3))
    expected = distributions.kl_divergence(q, p).sum(1)
    torch.testing.assert_close(kl_standard_normal(loc, log_scale), expected)


@pytest.mark.equation("eq-kl-definition")
@pytest.mark.equation("eq-kl-closed-form")
@pytest.mark.parametrize("loc", [0.0, 0.7, -3.0])
@pytest.mark.parametrize("scale", [0.1, 0.4, 1.0, 2.0])
def test_kl_standard_normal_matches_quadrature(loc, scale):
    q, p = stats.norm(loc, scale), stats.norm(0, 1)

    def integrand(z):
        return q.pdf(z) * (q.logpdf(z) - p.logpdf(z))

    expected, _ = integrate.quad(integrand, loc - 12 * scale, loc + 12 * scale, epsabs=1e-12)
    kl = kl_standard_normal(one(loc), one(math.log(scale)))
    assert kl.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.equation("eq-kl-closed-form")
def test_kl_standard_normal_matches_hand_value():
    # loc 3 and 4, log_scale log 2: (25 + 2 * (4 - 1 - 2 log 2)) / 2; a log-variance would give 2 - 1 - log 2
    kl = kl_standard_normal(torch.tensor([[3.0, 4.0]]), torch.full((1, 2), math.log(2)))
    assert kl.item() == pytest.approx(12.5 + 3 - 2 * math.log(2), rel=1e-6)


def test_kl_standard_normal_is_additive_over_latents():
    loc, log_scale = normal(5, 4, seed=0), normal(5, 4, seed=1)
    parts = [kl_standard_normal(loc[:, j : j + 1], log_scale[:, j : j + 1]) for j in range(4)]
    torch.testing.assert_close(kl_standard_normal(loc, log_scale), torch.stack(parts).sum(0))


@pytest.mark.parametrize("shape", [(3,), (5, 3), (6, 5, 3)], ids=str)
def test_kl_standard_normal_sums_the_last_dimension_only(shape):
    loc = torch.ones(shape, dtype=F64)
    expected = torch.full(shape[:-1], 1.5, dtype=F64)
    torch.testing.assert_close(kl_standard_normal(loc, torch.zeros(shape, dtype=F64)), expected)


# --- accuracy --------------------------------------------------------------------------------------------


@DTYPES
@given(log_scale=log_scales)
@example(log_scale=1e-7)
@example(log_scale=-1e-7)
@example(log_scale=0.1499)
@example(log_scale=-0.1501)
@example(log_scale=-20.0)
def test_kl_standard_normal_of_scale_and_its_gradient_match_mpmath(dtype, log_scale, ulps):
    log_scale = one(log_scale, dtype).requires_grad_()
    kl = kl_standard_normal(torch.zeros_like(log_scale), log_scale)
    (gradient,) = torch.autograd.grad(kl.sum(), log_scale)
    assert ulps(kl, scale_term(log_scale.item())) <= 5
    assert ulps(gradient, mpmath.expm1(2 * mpf(log_scale.item()))) <= 5


@DTYPES
@given(loc=locs, log_scale=log_scales)
def test_kl_standard_normal_matches_mpmath(dtype, loc, log_scale, ulps):
    value = kl_standard_normal(one(loc, dtype), one(log_scale, dtype))
    assert ulps(value, mpf(loc) ** 2 / 2 + scale_term(log_scale)) <= 6  # both parts are nonnegative


@DTYPES
@given(loc=locs, log_scale=log_scales)
def test_kl_standard_normal_is_zero_iff_prior(dtype, loc, log_scale):
    kl = kl_standard_normal(one(loc, dtype), one(log_scale, dtype)).item()
    square = one(loc, dtype).square().item()  # 0 for the tiniest locations
    assert kl > 0 or (kl == 0 and square == 0 and log_scale == 0)


def test_kl_gradient_matches_finite_difference():
    arguments = [0.5 * normal(2, 3, seed=seed).requires_grad_() for seed in range(2)]
    assert torch.autograd.gradcheck(kl_standard_normal, arguments)


# --- Monte Carlo -----------------------------------------------------------------------------------------


def draws(loc: float, scale: float, num_samples: int) -> torch.Tensor:
    loc, log_scale = one(loc), one(math.log(scale))
    return kl_monte_carlo(loc, log_scale, num_samples=num_samples, generator=generator())[:, 0]


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 0.5), (0.7, 0.4), (-2.0, 1.5)])
def test_kl_monte_carlo_is_unbiased(loc, scale):
    sample = draws(loc, scale, 200_000)
    exact = (loc**2 + scale**2 - 1 - 2 * math.log(scale)) / 2
    assert (sample.mean() - exact).abs() < 4 * sample.std() / len(sample) ** 0.5


def test_kl_monte_carlo_single_draws_are_negative_as_often_as_quadrature_says():
    loc, scale = 0.7, 0.4
    # log q - log p is a parabola in eps, negative outside its two roots
    low, high = sorted(np.roots([(scale**2 - 1) / 2, loc * scale, loc**2 / 2 - math.log(scale)]))
    expected = stats.norm.cdf(low) + stats.norm.sf(high)
    assert expected == pytest.approx(0.107726, abs=5e-7)
    share = (draws(loc, scale, 1_000_000) < 0).double().mean().item()
    assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 1e6) ** 0.5)


def test_kl_monte_carlo_matches_torch_distributions_draw_by_draw():
    loc, log_scale = normal(5, 3, seed=0), normal(5, 3, seed=1)
    sample = kl_monte_carlo(loc, log_scale, num_samples=4, generator=generator(7))
    eps = torch.randn(4, 5, 3, dtype=F64, generator=generator(7))
    z = loc + log_scale.exp() * eps
    q, p = distributions.Normal(loc, log_scale.exp()), distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(sample, (q.log_prob(z) - p.log_prob(z)).sum(-1))


def test_kl_monte_carlo_is_reproducible_given_generator():
    assert torch.equal(draws(0.3, 0.5, 10), draws(0.3, 0.5, 10))
    assert draws(0.3, 0.5, 10).unique().numel() == 10


# --- dtype, compilation, devices -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    loc = torch.full((1, 1), 300.0, dtype=dtype)  # its square overflows float16
    kl = kl_standard_normal(loc, torch.full((1, 1), 1e-3, dtype=dtype))
    assert kl.dtype == F32
    assert kl.item() == pytest.approx(45_000, rel=1e-5)
    assert kl_monte_carlo(loc, torch.zeros_like(loc), num_samples=1).dtype == F32


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_kl_equals_eager(backend):
    torch.compiler.reset()
    arguments = [normal(5, 3, seed=seed) for seed in range(2)]
    compiled = torch.compile(kl_standard_normal, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), kl_standard_normal(*arguments), rtol=1e-14, atol=0)


@pytest.mark.gpu
def test_kl_agrees_on_cpu_and_gpu(accelerator):
    loc, log_scale = normal(5, 20, seed=0).float(), normal(5, 20, seed=1).float()
    on_device = kl_standard_normal(loc.to(accelerator), log_scale.to(accelerator)).cpu()
    torch.testing.assert_close(on_device, kl_standard_normal(loc, log_scale), rtol=1e-5, atol=0)


# --- bad input -------------------------------------------------------------------------------------------

ZEROS, INTEGERS = torch.zeros(2, 3), torch.zeros(2, 3).long()
SHAPES = [((2, 3), (2, 1)), ((2, 1), (2,)), ((1, 3), (2, 3)), ((), ())]
SAME_SHAPE = r"loc and log_scale must share one shape .* got \(.*\) and \("
BAD_INPUT = [
    *((torch.zeros(shape), torch.zeros(other), SAME_SHAPE) for shape, other in SHAPES),
    (INTEGERS, ZEROS, r"loc must be floating point, got torch\.int64"),
    (ZEROS, INTEGERS, r"log_scale must be floating point, got torch\.int64"),
]


@pytest.mark.parametrize("divergence", [kl_standard_normal, partial(kl_monte_carlo, num_samples=2)])
@pytest.mark.parametrize(("loc", "log_scale", "message"), BAD_INPUT, ids=[row[2] for row in BAD_INPUT])
def test_kl_rejects_other_shapes_and_integers(divergence, loc, log_scale, message):
    with pytest.raises(ValueError, match=message):
        divergence(loc, log_scale)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["loc", "log_scale"])
def test_kl_standard_normal_rejects_nonfinite_values(which, bad):
    arguments = {"loc": torch.zeros(2, 3), "log_scale": torch.zeros(2, 3)}
    arguments[which][1, 2] = bad
    with pytest.raises(ValueError, match=f"{which} must be finite, got {bad:g}"):
        kl_standard_normal(**arguments)


@pytest.mark.parametrize("num_samples", [0, -1])
def test_kl_monte_carlo_rejects_too_few_samples(num_samples):
    with pytest.raises(ValueError, match=f"num_samples must be at least 1, got {num_samples}"):
        kl_monte_carlo(torch.zeros(1, 1), torch.zeros(1, 1), num_samples=num_samples)


EXTREMES = st.sampled_from([0.0, 1.0, -1e4, 1e4, 3e38, -3e38, math.nan])


@pytest.mark.equation("eq-kl-definition")
@DTYPES
@given(rows=st.lists(st.tuples(EXTREMES, EXTREMES), min_size=1))
def test_kl_of_anything_is_a_nonnegative_number_or_a_value_error(dtype, rows):
    try:
        kl = kl_standard_normal(*torch.tensor(rows, dtype=dtype).T)
    except ValueError:
        return
    assert kl.shape == () and kl.item() >= 0  # false for nan
