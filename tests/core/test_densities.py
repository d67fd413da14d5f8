import math
import re

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from mpmath import mpf
from scipy import integrate
from torch import distributions

from tests.core.examples import DTYPES, F32, F64, data, normal, one
from vaecourse import densities
from vaecourse.datasets import digits, mnist
from vaecourse.densities import bernoulli_nll, continuous_bernoulli_nll, gaussian_nll, laplace_nll

LOCATION_SCALE = pytest.mark.parametrize("density", [gaussian_nll, laplace_nll], ids=["gaussian", "laplace"])
ON_UNIT_INTERVAL = pytest.mark.parametrize(
    "density", [bernoulli_nll, continuous_bernoulli_nll], ids=["bernoulli", "continuous_bernoulli"]
)
DENSITIES = {
    "gaussian": lambda x, params: gaussian_nll(x, params, 0.3),
    "laplace": lambda x, params: laplace_nll(x, params, 0.3),
    "bernoulli": bernoulli_nll,
    "continuous_bernoulli": continuous_bernoulli_nll,
}
ELEMENTWISE = {
    "log_normalizer": densities.continuous_bernoulli_log_normalizer,
    "mean": densities.continuous_bernoulli_mean,
}
EVERY_DENSITY = pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)

# numbers that float32 holds exactly, so that one example serves both dtypes
unit = st.floats(0, 1, width=32, allow_subnormal=False)
real = st.floats(-100, 100, width=32, allow_subnormal=False)
near_switch = st.integers(-600, 600).map(lambda n: float(np.float32(n / 1000)))  # where series take over
tiny = st.floats(-30, 0).map(lambda power: float(np.float32(10.0**power)))
logit = st.one_of(real, near_switch, tiny, tiny.map(lambda a: -a))
scale = st.floats(-8, 8).map(lambda power: float(np.float32(10.0**power)))


def params(*shape: int) -> torch.Tensor:
    return 3 * normal(*shape)


def softplus(a: mpf) -> mpf:
    return mpmath.log1p(mpmath.exp(a))


def log_normalizer(a: mpf) -> mpf:
    return mpmath.log(a / mpmath.tanh(a / 2)) if a else mpmath.log(2)


def continuous_mean(a: mpf) -> mpf:
    excess = a / 12 if abs(a) < mpf(10) ** -12 else 1 / (2 * mpmath.tanh(a / 2)) - 1 / a
    return mpf(1) / 2 + excess


# --- values against independent implementations ----------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "distribution"),
    [
        (lambda x, p: gaussian_nll(x, p, 0.7), lambda p: distributions.Normal(p, 0.7)),
        (lambda x, p: laplace_nll(x, p, 0.7), lambda p: distributions.Laplace(p, 0.7)),
        (lambda x, p: bernoulli_nll(x.round(), p), lambda p: distributions.Bernoulli(logits=p)),
        # moderate logits only: torch's normaliser loses digits for large ones
        (continuous_bernoulli_nll, lambda p: distributions.ContinuousBernoulli(logits=p)),
    ],
    ids=DENSITIES,
)
def test_density_matches_torch_distributions(density, distribution):
    x, p = data(5, 7), params(5, 7) / 3
    target = x.round() if isinstance(distribution(p), distributions.Bernoulli) else x
    torch.testing.assert_close(density(x, p), -distribution(p).log_prob(target).sum(1))


@LOCATION_SCALE
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 1), (5, 7), (3, 5, 7)], ids=str)
def test_scale_tensor_broadcasts_like_torch_distributions(density, shape):
    x, loc, s = data(5, 7), params(3, 5, 7), 0.1 + data(*shape, seed=2)
    family = distributions.Normal if density is gaussian_nll else distributions.Laplace
    torch.testing.assert_close(density(x, loc, s), -family(loc, s).log_prob(x).sum(-1))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (gaussian_nll(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), 1.0), 12.5 + math.log(2 * math.pi)),
        # a slip between scale and variance changes both terms here: 0.5 * (6 / 2)**2 + log 2 + 0.5 log 2 pi
        (gaussian_nll(torch.tensor([[6.0]]), torch.zeros(1, 1), 2.0), 4.5 + math.log(2) + 0.918938533),
        (laplace_nll(torch.tensor([[3.0, -4.0]]), torch.zeros(1, 2), 2.0), 3.5 + 2 * math.log(4)),
        (bernoulli_nll(torch.tensor([[0.0, 1.0]]), torch.full((1, 2), math.log(3))), math.log(16 / 3)),
        (continuous_bernoulli_nll(torch.tensor([[0.3]]), torch.zeros(1, 1)), 0.0),
    ],
    ids=["gaussian", "gaussian-scale", "laplace", "bernoulli", "continuous_bernoulli"],
)
def test_density_matches_hand_value(value, expected):
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_gaussian_nll_matches_published_regression_anchor():
    # sigma = 0.2, 20 points, sum of squared errors 2.020992572 give 11.452419564
    x = torch.full((20, 1), math.sqrt(2.020992572 / 20), dtype=F64)
    nll = gaussian_nll(x, torch.zeros_like(x), 0.2).sum()
    assert nll.item() == pytest.approx(11.452419564, abs=1e-8)  # nine decimals, divided by 2 * 0.2**2


def moment(density, a: float, power: int) -> float:
    """Integral of x^power over [0, 1], weighted by what should be a density."""
    return integrate.quad(lambda x: x**power * math.exp(-density(one(x), one(a))), 0, 1, epsabs=1e-13)[0]


@pytest.mark.parametrize("a", [-40.0, -2.0, -0.05, -0.01, 0.0, 0.3, 1.0, 5.0, 15.0])
def test_continuous_bernoulli_density_integrates_to_one_and_has_the_mean(a):
    assert moment(continuous_bernoulli_nll, a, 0) == pytest.approx(1, abs=1e-10)
    mean = moment(continuous_bernoulli_nll, a, 1)
    assert densities.continuous_bernoulli_mean(one(a)).item() == pytest.approx(mean, abs=1e-10)


@pytest.mark.parametrize("a", [-5.0, -1.0, 0.2, 3.0])
def test_bernoulli_formula_on_grey_values_is_not_a_density(a):
    """Its integral over [0, 1] is 1 / C: it falls short by exactly the continuous Bernoulli normaliser."""
    integral = moment(bernoulli_nll, a, 0)
    assert integral < 0.5
    normalizer = densities.continuous_bernoulli_log_normalizer(one(a)).item()
    assert -math.log(integral) == pytest.approx(normalizer, abs=1e-10)


@pytest.mark.parametrize(("probability", "expected"), [(0.5, 0.693147), (0.1, 1.01034), (0.9, 1.01034)])
def test_continuous_bernoulli_log_normalizer_matches_published_value(probability, expected):
    a = torch.logit(torch.tensor(probability, dtype=F64))
    assert densities.continuous_bernoulli_log_normalizer(a).item() == pytest.approx(expected, abs=5e-6)


# --- the floor of cross-entropy on grey images -----------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "max_level", "floor"),
    [
        (lambda: mnist("train")[0], 255, pytest.approx(45.7568, abs=5e-5)),
        (lambda: mnist("test")[0], 255, pytest.approx(45.5345, abs=5e-5)),
        (lambda: digits()[0], 16, pytest.approx(13.658, abs=5e-4)),
    ],
    ids=["mnist-train", "mnist-test", "digits"],
)
def test_bernoulli_nll_floor_is_entropy_of_grey_images(images, max_level, floor):
    """Mean cross-entropy per image under perfect predictions, summed level by level."""
    counts = torch.bincount(images().flatten(), minlength=max_level + 1).double()
    levels = (torch.arange(max_level + 1, dtype=F64) / max_level).unsqueeze(1)
    nll = bernoulli_nll(levels, levels.clamp(1e-15, 1 - 1e-15).logit())
    assert (counts @ nll).item() / len(images()) == floor


@given(x=unit, probability=st.floats(0.001, 0.999))
def test_bernoulli_nll_above_its_floor_by_pinskers_bridge(x, probability):
    """BCE(x, p) - H(x) >= 2 (x - p)^2: cross-entropy is at least a Gaussian of variance 1/4."""
    x, p = one(x), one(probability)
    excess = bernoulli_nll(x, p.logit()) - bernoulli_nll(x, x.clamp(1e-15, 1 - 1e-15).logit())
    assert excess.item() >= 2 * (x - p).square().item() - 1e-12


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_bernoulli_nll_is_locally_a_gaussian_of_variance_p_times_1_minus_p(probability):
    p, step = one(probability), 1e-4
    x = p + step
    excess = bernoulli_nll(x, p.logit()) - bernoulli_nll(x, x.logit())
    gaussian = step**2 / (2 * probability * (1 - probability))
    assert excess.item() == pytest.approx(gaussian, rel=1e-2)  # the next order is about 10 * step


# --- accuracy: property tests against 60 digits ----------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "term", "constant", "roundings"),
    [
        (gaussian_nll, lambda residual: residual**2 / 2, mpmath.log(2 * mpmath.pi) / 2, 5),
        (laplace_nll, abs, mpmath.log(2), 4),
    ],
    ids=["gaussian", "laplace"],
)
@DTYPES
@given(x=real, loc=real, scale=scale)
def test_location_scale_nll_matches_mpmath(density, term, constant, roundings, dtype, x, loc, scale):
    terms = term((mpf(x) - mpf(loc)) / mpf(scale)), mpmath.log(mpf(scale)), constant
    value = density(one(x, dtype), one(loc, dtype), one(scale, dtype))
    # the terms have either sign: the error is a few roundings of the largest one
    assert abs(mpf(value.item()) - sum(terms)) <= roundings * torch.finfo(dtype).eps * sum(map(abs, terms))


@DTYPES
@given(x=st.one_of(unit, st.sampled_from([0.0, 1.0])), a=logit)
@example(x=1.0, a=30.0)
@example(x=1.0, a=100.0)
@example(x=0.0, a=-100.0)
def test_bernoulli_nll_matches_mpmath(dtype, x, a, ulps):
    truth = mpf(x) * softplus(-mpf(a)) + (1 - mpf(x)) * softplus(mpf(a))
    assert ulps(bernoulli_nll(one(x, dtype), one(a, dtype)), truth) <= 4


@DTYPES
@given(a=logit)
@example(a=0.0)
@example(a=0.09999)
@example(a=-0.1001)
@example(a=0.4999)
@example(a=0.5001)
@example(a=100.0)
def test_continuous_bernoulli_log_normalizer_matches_mpmath(dtype, a, ulps):
    a = torch.tensor(a, dtype=dtype)
    assert ulps(densities.continuous_bernoulli_log_normalizer(a), log_normalizer(mpf(a.item()))) <= 4


@DTYPES
@given(x=unit, a=logit)
def test_continuous_bernoulli_nll_matches_mpmath(dtype, x, a):
    a_mp, x_mp = mpf(a), mpf(x)
    terms = x_mp * softplus(-a_mp) + (1 - x_mp) * softplus(a_mp), log_normalizer(a_mp)
    value = continuous_bernoulli_nll(one(x, dtype), one(a, dtype))
    # a difference of two positive numbers: a few roundings of the larger one
    assert abs(mpf(value.item()) - (terms[0] - terms[1])) <= 4 * torch.finfo(dtype).eps * sum(terms)


@DTYPES
@given(a=logit)
@example(a=0.0)
@example(a=-0.0999)
@example(a=0.1001)
@example(a=0.4999)
@example(a=0.5001)
def test_continuous_bernoulli_mean_matches_mpmath(dtype, a):
    a = torch.tensor(a, dtype=dtype)
    error = abs(mpf(densities.continuous_bernoulli_mean(a).item()) - continuous_mean(mpf(a.item())))
    # absolute: at the switch to the series, 0.5 / tanh(a / 2) and 1 / a are 2 (float32) or 10 (float64)
    assert error <= (4 if dtype == F32 else 20) * torch.finfo(dtype).eps


def test_torch_continuous_bernoulli_is_no_oracle_for_large_logits():
    """Why mpmath: torch is 40 % off where this package keeps every digit."""
    a = torch.tensor(100.0)
    theirs = distributions.ContinuousBernoulli(logits=a)._cont_bern_log_norm()
    assert abs(theirs.item() - math.log(100)) > 1
    assert densities.continuous_bernoulli_log_normalizer(a).item() == pytest.approx(math.log(100), rel=1e-6)


@ON_UNIT_INTERVAL
@pytest.mark.parametrize("a", [-1e30, -1e4, -88.0, 88.0, 1e4, 1e30])
@DTYPES
def test_density_is_stable_for_extreme_logits(density, a, dtype):
    x = torch.tensor([[0.0], [0.25], [1.0]], dtype=dtype)
    logits = torch.full((3, 1), a, dtype=dtype, requires_grad=True)
    nll = density(x, logits)
    (gradient,) = torch.autograd.grad(nll.sum(), logits)
    assert nll.isfinite().all() and gradient.isfinite().all()
    wrong = x[:, 0] if a < 0 else 1 - x[:, 0]  # the part of x that the certain model excludes
    expected = wrong * abs(a) - (math.log(abs(a)) if density is continuous_bernoulli_nll else 0)
    torch.testing.assert_close(nll.detach(), expected, rtol=1e-6, atol=1e-6)


@ON_UNIT_INTERVAL
@given(x=unit, a=real)
def test_density_is_symmetric_under_inversion(density, x, a):
    """Swapping black and white changes the sign of the logit, and nothing else."""
    x = round(x * 2**24) / 2**24  # a multiple of 2^-24: 1 - x is exact
    mirrored = density(one(1 - x), one(-a))
    torch.testing.assert_close(density(one(x), one(a)), mirrored, rtol=1e-14, atol=1e-14)


# --- gradients -------------------------------------------------------------------------------------------


@EVERY_DENSITY
def test_density_gradient_matches_finite_difference(density):
    x, p = data(3, 4), params(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: density(x, p), p)


@LOCATION_SCALE
def test_scale_gradient_matches_finite_difference(density):
    x, loc, s = data(3, 4), params(3, 4), (0.5 + data(3, 4, seed=2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: density(x, loc, s), s)


@DTYPES
@given(x=unit, a=logit)
def test_bernoulli_nll_gradient_is_sigmoid_minus_x(dtype, x, a):
    logits = one(a, dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(bernoulli_nll(one(x, dtype), logits).sum(), logits)
    truth = 1 / (1 + mpmath.exp(-mpf(a))) - mpf(x)
    assert abs(mpf(gradient.item()) - truth) <= 2 * torch.finfo(dtype).eps


@DTYPES
@given(a=logit)
@example(a=-0.0999)
@example(a=0.4999)
def test_continuous_bernoulli_log_normalizer_gradient_matches_mpmath(dtype, a):
    a = torch.tensor(a, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(densities.continuous_bernoulli_log_normalizer(a), a)
    a_mp = mpf(a.item())
    truth = 1 / a_mp - 1 / mpmath.sinh(a_mp) if abs(a_mp) > mpf(10) ** -12 else a_mp / 6
    # absolute: 1 / a and 1 / sinh(a) are 2 (float32) or 10 (float64) where the series ends
    assert abs(mpf(gradient.item()) - truth) <= (8 if dtype == F32 else 40) * torch.finfo(dtype).eps


@given(x=unit, a=st.floats(-30, 30))
def test_continuous_bernoulli_nll_gradient_is_mean_minus_x(x, a):
    logits = one(a).requires_grad_()
    (gradient,) = torch.autograd.grad(continuous_bernoulli_nll(one(x), logits).sum(), logits)
    assert gradient.item() == pytest.approx(float(continuous_mean(mpf(a)) - mpf(x)), abs=1e-13)


def test_continuous_bernoulli_mean_gradient_matches_finite_difference():
    a = torch.tensor([-20.0, -1.0, -0.05, 0.0, 0.02, 0.3, 8.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(densities.continuous_bernoulli_mean, a)


# --- shapes, reduction, dtype ----------------------------------------------------------------------------


@EVERY_DENSITY
@pytest.mark.parametrize("event", [(), (7,), (1, 4, 3)], ids=str)
@pytest.mark.parametrize("samples", [(), (6,), (2, 6)], ids=str)
def test_density_sums_event_and_keeps_batch_and_samples(density, event, samples):
    x, p = data(5, *event), params(*samples, 5, *event)
    nll = density(x, p)
    assert nll.shape == (*samples, 5)
    # entry by entry: nothing is mixed between examples or samples
    for index in np.ndindex(*nll.shape):
        terms = density(x[index[-1]].reshape(-1), p[index].reshape(-1))  # each number an example of its own
        assert nll[index].item() == pytest.approx(terms.sum().item(), rel=1e-12)


@EVERY_DENSITY
def test_density_of_no_examples_is_empty(density):
    assert density(data(0, 7), params(3, 0, 7)).shape == (3, 0)


@EVERY_DENSITY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_half_precision_is_computed_in_float32(density, dtype):
    x, p = data(5, 7).to(dtype), params(5, 7).to(dtype)
    nll = density(x, p)
    assert nll.dtype == F32
    torch.testing.assert_close(nll, density(x.double(), p.double()).float(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gaussian_nll_of_half_precision_does_not_overflow(dtype):
    x = torch.full((1, 784 * 128), 1.0, dtype=dtype)  # the sum of squares exceeds float16's 65504
    nll = gaussian_nll(x, torch.zeros_like(x), 1.0)
    assert nll.item() == pytest.approx(784 * 128 * (0.5 + 0.5 * math.log(2 * math.pi)), rel=1e-6)


@EVERY_DENSITY
def test_bfloat16_params_stay_near_float32(density):
    x, p = data(5, 784).float(), params(5, 784).float() / 3
    # bfloat16 keeps 8 bits, a relative 2^-9 of each parameter; errors of either sign average out
    torch.testing.assert_close(density(x, p.bfloat16()), density(x, p), rtol=5e-3, atol=0.5)


COMPILED = DENSITIES | {name: lambda x, p, f=f: f(p) for name, f in ELEMENTWISE.items()}


@pytest.mark.parametrize("function", COMPILED.values(), ids=COMPILED)
def test_compiled_function_equals_eager(function):
    torch.compiler.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    x, p = data(5, 20), params(5, 20)
    torch.testing.assert_close(compiled(x, p), function(x, p), rtol=1e-14, atol=0)


@pytest.mark.long
@LOCATION_SCALE
def test_compiled_density_takes_changing_scales(density):
    torch.compiler.reset()
    compiled = torch.compile(density, backend="aot_eager", fullgraph=True)
    x, loc = data(5, 7), params(5, 7)
    for s in (1.0, 0.5, 0.25, 0.5 + data(7), 0.5 + data(5, 7)):  # a changing float becomes a symbol
        torch.testing.assert_close(compiled(x, loc, s), density(x, loc, s), rtol=1e-14, atol=0)


@pytest.mark.gpu
@EVERY_DENSITY
def test_density_agrees_on_cpu_and_gpu(density, accelerator):
    x, p = data(5, 784).float(), params(5, 784).float()
    on_device = density(x.to(accelerator), p.to(accelerator)).cpu()
    torch.testing.assert_close(on_device, density(x, p), rtol=1e-5, atol=1e-3)  # another summation order


# --- bad input -------------------------------------------------------------------------------------------

ZEROS = torch.zeros(2, 1)
INTEGERS = [torch.uint8, torch.int64, torch.bool, torch.complex64]
NONFINITE = [torch.tensor([[0.0], [bad]]) for bad in (math.nan, math.inf, -math.inf)]
SHAPES = [((5,), (5, 1)), ((5, 1), (5,)), *(((5, 7), shape) for shape in [(5, 1), (7,), (7, 5), (6, 7)])]
BAD_INPUT = [
    *((data(*a), data(*b), rf"must have the shape of x.*x has \({a[0]},.* has \({b[0]},") for a, b in SHAPES),
    (torch.tensor(0.5), torch.tensor(0.5), r"x must have shape .* add a batch dimension"),
    *((ZEROS.to(dtype), ZEROS, f"x must be floating point, got {dtype}") for dtype in INTEGERS),
    *((ZEROS, ZEROS.to(dtype), f"(loc|logits) must be floating point, got {dtype}") for dtype in INTEGERS),
    *((bad, ZEROS, f"x must be a tensor, got {type(bad).__name__}") for bad in ([0.0], np.zeros(1), 0.0)),
    *((ZEROS, bad, f"(loc|logits) must be finite, got {bad[1].item():g}") for bad in NONFINITE),
    *((bad, ZEROS, rf"x must (be finite|lie in \[0, 1\]), got .*{bad[1].item():g}") for bad in NONFINITE),
]


@EVERY_DENSITY
@pytest.mark.parametrize(("x", "params", "message"), BAD_INPUT, ids=[row[-1] for row in BAD_INPUT])
def test_density_rejects_bad_input(density, x, params, message):
    with pytest.raises(ValueError, match=message):
        density(x, params)


@ON_UNIT_INTERVAL
@pytest.mark.parametrize(
    ("bad", "advice"),
    [
        (255.0, "divide grey levels by 255"),
        (16.0, "divide grey levels by 16"),
        (4095.0, "divide grey levels by 65535"),
        (1e6, "choose a Gaussian"),
        (1.0001, "choose a Gaussian"),
        (-2.1, "choose a Gaussian"),
        (-0.0001, r"pixels in \[-1, 1\] become \(x \+ 1\) / 2"),
        (math.nan, "fill in what is missing"),
    ],
)
def test_density_rejects_unscaled_pixels_with_advice_that_fits(density, bad, advice):
    message = rf"x must lie in \[0, 1\], got .*{re.escape(f'{bad:g}')}.*{advice}"
    with pytest.raises(ValueError, match=message):
        density(torch.tensor([[0.5, bad]]), torch.zeros(1, 2))


NOT_POSITIVE = "scale is a standard deviation and must be positive.*got.* ?{:g}"
NO_BROADCAST = r"scale of shape \({},.* does not broadcast to loc, \(2, 3\)"
BAD_SCALES = [
    *((bad, NOT_POSITIVE.format(bad)) for bad in (0.0, -1.0, math.nan, math.inf)),
    *((torch.tensor([1.0, bad, 2.0]), NOT_POSITIVE.format(bad)) for bad in (0.0, -1.0, math.nan, math.inf)),
    # float32 rounds it to zero: dividing a residual of 0 by it would be 0 / 0
    *((bad, NOT_POSITIVE.format(1e-50)) for bad in (1e-50, torch.tensor(1e-50, dtype=F64))),
    *((torch.ones(n), NO_BROADCAST.format(n[0])) for n in [(4,), (5, 7), (2, 2, 3), (3, 1)]),
    (torch.tensor(1), r"scale must be floating point, got torch\.int64"),
]


@LOCATION_SCALE
@pytest.mark.parametrize(("scale", "message"), BAD_SCALES, ids=[row[-1] for row in BAD_SCALES])
def test_density_rejects_bad_scale(density, scale, message):
    with pytest.raises(ValueError, match=message):
        density(torch.zeros(2, 3), torch.zeros(2, 3), scale)


@pytest.mark.parametrize("function", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_elementwise_function_rejects_integers(function):
    with pytest.raises(ValueError, match=r"logits must be floating point, got torch\.int64"):
        function(torch.zeros(3, dtype=torch.int64))


# --- fuzz: a number of the right shape or a ValueError, and nothing else ----------------------------------

sizes = st.lists(st.integers(0, 3), max_size=3)
floats = st.sampled_from([F32, F64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
others = st.sampled_from([torch.int64, torch.uint8, torch.bool])
benign = st.sampled_from([0.0, 1.0, 0.5, 0.25])
hostile = st.sampled_from(
    [-1.0, 1e-7, 255.0, 1e-45, 1e30, -3e38, 1e-310, 1e308, -1e308, math.nan, math.inf, -math.inf]
)
one_in_five = st.integers(0, 4).map(lambda n: n == 4)  # rare faults: about half of the examples are accepted


@st.composite
def tensors(draw: st.DrawFn, shape: list[int] | None = None) -> torch.Tensor:
    shape = draw(sizes) if shape is None else shape
    values = st.one_of(benign, hostile) if draw(one_in_five) else benign
    numbers = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    dtype = draw(others) if draw(one_in_five) else draw(floats)
    return torch.tensor(numbers, dtype=F64).reshape(shape).to(dtype)


@st.composite
def data_and_params(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    x = draw(tensors())
    shape = draw(sizes) if draw(one_in_five) else draw(sizes)[:1] + list(x.shape)
    return x, draw(tensors(shape))


def check_number_or_value_error(density, x: torch.Tensor, params: torch.Tensor, *scale) -> None:
    try:
        nll = density(x, params, *scale)
    except ValueError:
        return
    assert nll.shape == params.shape[: params.ndim - x.ndim + 1]
    assert not nll.isnan().any()


@EVERY_DENSITY
@given(pair=data_and_params())
def test_density_of_anything_is_a_number_or_a_value_error(density, pair):
    check_number_or_value_error(density, *pair)


@LOCATION_SCALE
@given(pair=data_and_params(), scale=st.one_of(benign, hostile, tensors(), tensors([]), tensors([1])))
def test_density_of_any_scale_is_a_number_or_a_value_error(density, pair, scale):
    pair = (torch.nan_to_num(tensor.float(), posinf=1, neginf=-1) for tensor in pair)
    check_number_or_value_error(density, *pair, scale)


# --- every float32 number ---------------------------------------------------------------------------------


def every_float32(largest: float, chunk: int = 1 << 24):
    """All float32 numbers from 0 to `largest`, and their negatives, in chunks."""
    last = int(np.float32(largest).view(np.uint32))
    for start in range(0, last + 1, chunk):
        positive = np.arange(start, min(start + chunk, last + 1), dtype=np.uint32).view(np.float32)
        yield from (positive, -positive)


def log_normalizer_in_float64(a: np.ndarray) -> np.ndarray:
    a = np.where(a == 0, 1e-9, a.astype(np.float64))  # the limit at 0, to 1e-19
    return np.log(a / np.tanh(a / 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "truth", "ulps"),
    [
        (lambda a: bernoulli_nll(torch.zeros_like(a), a), lambda a: np.logaddexp(0, a.astype(np.float64)), 2),
        (densities.continuous_bernoulli_log_normalizer, log_normalizer_in_float64, 3),
    ],
    ids=["bernoulli_nll", "log_normalizer"],
)
def test_density_is_accurate_for_every_float32_logit(function, truth, ulps):
    worst = 0.0
    for a in every_float32(80.0):  # softplus stays a normal float32 number down to -87
        expected = truth(a)
        unit = np.spacing(expected.astype(np.float32)).astype(np.float64)
        error = np.abs(function(torch.from_numpy(a)).numpy().astype(np.float64) - expected) / unit
        worst = max(worst, float(error.max()))
    assert worst <= ulps
