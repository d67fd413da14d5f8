"""The equations and the exercises of the fifth chapter, each against an oracle without its formula."""

import copy
import itertools
import json
import math
import subprocess
import sys
from fractions import Fraction
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, bfloat16, float16, float32, nn
from torch.optim import SGD, Adam
from torch.utils.flop_counter import FlopCounterMode

from tests.book.oracles import F64, column, descend, flat, generator, gradient, hermite
from vaecourse.datasets import digits, to_unit_interval
from vaecourse.densities import bernoulli_nll, gaussian_nll
from vaecourse.divergences import kl_standard_normal
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import negative_elbo
from vaecourse.training import fit

# significant binary digits, as the chapter's table prints them
FORMATS = pytest.mark.parametrize(("dtype", "p"), [(bfloat16, 8), (float16, 11), (float32, 24)])


def per_example(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """Negative ELBO of each example, with given noise."""
    loc, log_scale = vae.encode(x)
    return bernoulli_nll(x, vae.decode(loc + log_scale.exp() * eps)) + kl_standard_normal(loc, log_scale)


def loss_with_noise(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    return per_example(vae, x, eps).mean()


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    return mlp_vae(6, 2, hidden_dims=(5,)).double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    x = torch.bernoulli(torch.full((13, 6), 0.4, dtype=F64), generator=generator())
    return x, torch.randn(13, 2, dtype=F64, generator=generator(1))


# --- how fast a step could be ----------------------------------------------------------------------------


@pytest.mark.equation("eq-step-flops")
@pytest.mark.parametrize("size", [1, 7, 128])
@pytest.mark.parametrize("dims", [(784, 20, (400,)), (64, 8, (64, 48)), (10, 3, (7, 6, 5))], ids=str)
def test_step_flops_match_pytorch_counter(size, dims):
    data_dim, latent_dim, hidden_dims = dims
    model = mlp_vae(data_dim, latent_dim, hidden_dims=hidden_dims)
    products = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)]
    with FlopCounterMode(display=False) as counter:
        negative_elbo(model, torch.zeros(size, data_dim)).backward()
    expected = 6 * size * sum(products) - 2 * size * products[0]
    assert counter.get_total_flops() == expected
    assert expected == 3_280_000 or (data_dim, size) != (784, 1)


@pytest.mark.equation("eq-adam-bytes")
def test_adam_reads_four_numbers_a_weight_and_writes_three():
    """Read is what changes a result when it is changed; written is what a step changes."""

    def step(changed: str | None = None) -> tuple[dict[str, Tensor], set[str]]:
        weight = nn.Parameter(torch.linspace(-1, 1, 5, dtype=F64))
        weight.grad = torch.linspace(1, 2, 5, dtype=F64)
        optimizer = Adam([weight], lr=0.1, fused=True)
        optimizer.step()
        numbers = {"weight": weight.data, "gradient": weight.grad, **optimizer.state[weight]}
        del numbers["step"]  # one for the whole tensor
        if changed is not None:
            numbers[changed].add_(0.3)
        before = copy.deepcopy(numbers)
        optimizer.step()
        return numbers, {name for name in numbers if (numbers[name] - before[name]).abs().min() > 0}

    unchanged, written = step()
    assert set(unchanged) == {"weight", "gradient", "exp_avg", "exp_avg_sq"}
    assert written == {"weight", "exp_avg", "exp_avg_sq"}
    for name in unchanged:
        after, _ = step(changed=name)
        assert any(not torch.equal(after[other], unchanged[other]) for other in written)
    assert (len(unchanged) + len(written)) * float32.itemsize == 28


@pytest.mark.equation("eq-asynchronous")
@pytest.mark.parametrize(("host", "device"), [(4, 6), (6, 4), (5, 5), (1, 100), (3, 0)])
def test_queue_runs_at_the_pace_of_the_slower_part(host, device):
    """Events one by one: an order is given when the host is ready, carried out when the device is."""

    def mean_time(waits: bool, num_steps: int = 100_000) -> float:
        host_is_at, device_is_done = 0, 0
        for _ in range(num_steps):
            host_is_at += host
            device_is_done = max(device_is_done, host_is_at) + device
            if waits:
                host_is_at = device_is_done
        return device_is_done / num_steps

    assert mean_time(waits=False) == pytest.approx(max(host, device), rel=1e-3)
    assert mean_time(waits=True) == host + device


@pytest.mark.equation("eq-break-even")
@pytest.mark.parametrize(("once", "eager", "fast"), [(40.0, 2e-3, 1.2e-3), (7.0, 0.5, 0.25), (0.1, 1.0, 0.3)])
def test_break_even_is_where_the_totals_cross(once, eager, fast):
    slow_total, fast_total, steps = 0.0, once, 0
    while slow_total <= fast_total:
        slow_total, fast_total, steps = slow_total + eager, fast_total + fast, steps + 1
    assert steps - 1 == pytest.approx(once / (eager - fast), abs=1)


# --- sixteen bits ----------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.equation("eq-rounding")
def test_rounding_error_is_at_most_two_to_the_minus_p(dtype, p):
    assert torch.finfo(dtype).eps == 2.0 ** (1 - p)
    mantissa = 1 + torch.rand(200_000, dtype=F64, generator=generator())
    v = mantissa * 2.0 ** torch.randint(-10, 11, (200_000,), generator=generator(1))
    error = ((v.to(dtype).double() - v).abs() / v).max()
    assert 0.97 * 2.0**-p < error <= 2.0**-p  # the bound is sharp


def test_formats_round_and_overflow_where_the_chapter_says():
    assert torch.finfo(float16).max == 65504
    assert torch.finfo(bfloat16).max > 3e38
    numbers = torch.tensor([1.0, 256.0], dtype=bfloat16)
    following = (numbers.view(torch.int16) + 1).view(bfloat16)
    assert following.tolist() == [1.0078125, 258.0]
    assert (numbers + torch.tensor([0.001, 1.0], dtype=bfloat16)).tolist() == [1, 256]
    assert torch.tensor(2049.0).half().item() == 2048
    assert math.log(65504) == pytest.approx(11.09, abs=5e-4)
    assert torch.tensor([11.0, 11.1]).exp().half().isinf().tolist() == [False, True]
    assert 128 * 784 == 100_352 > 65_504
    assert torch.ones(128, 784, dtype=float16).sum().isinf()
    assert torch.ones(128, 784, dtype=bfloat16).sum().isfinite()


@FORMATS
@pytest.mark.equation("eq-saturation")
def test_probability_rounds_to_one_from_this_logit_on(dtype, p):
    """The threshold is found by bisection; probabilities come from mpmath, rounding is exact."""
    below = 1 - torch.finfo(dtype).eps / 2  # the number below 1 is 1 - 2**-p
    assert torch.tensor(below, dtype=F64).to(dtype).item() == below
    low, high = mpmath.mpf(1), mpmath.mpf(40)
    for _ in range(100):
        middle = (low + high) / 2
        rounds_to_one = 1 / (1 + mpmath.exp(middle)) < (1 - mpmath.mpf(below)) / 2  # of 1 - rho
        low, high = (low, middle) if rounds_to_one else (middle, high)
    assert float(high) == pytest.approx(math.log(2 ** (p + 1) - 1), rel=1e-12)


def test_bf16_sigmoid_saturates_between_its_neighbouring_logits():
    logits = torch.tensor([6.21875, 6.25], dtype=bfloat16)  # neighbours
    assert (torch.sigmoid(logits) == 1).tolist() == [False, True]
    assert F.binary_cross_entropy(torch.sigmoid(logits[1]).float(), torch.zeros(())).item() == 100


def test_bf16_probabilities_cost_three_nats_and_logits_none():
    a = torch.distributions.Normal(0.0, 4.0).icdf((torch.arange(784) + 0.5) / 784)
    x, rounded = torch.sigmoid(a.double()), a.bfloat16()
    exact = bernoulli_nll(x[None], a.double()[None]).item()
    logits = bernoulli_nll(x[None].float(), rounded[None]).item()
    prob = F.binary_cross_entropy(torch.sigmoid(rounded).float(), x.float(), reduction="sum").item()
    assert exact == pytest.approx(228.0, abs=0.05)
    assert logits == pytest.approx(exact, abs=0.002)
    assert prob - exact == pytest.approx(3.0, abs=0.05)


@pytest.mark.equation("eq-kl-near-prior")
@pytest.mark.parametrize("m", [0.0, 0.3, -1.0])
@pytest.mark.parametrize("s", [-0.1, -0.01, -0.001, 0.001, 0.01, 0.1])
def test_kl_near_the_prior_is_a_sum_of_squares(m, s):
    """The remainder, by the integral of q log(q / p), falls like the third power of s."""
    nodes, weights = hermite(10)
    kl = weights @ (-s - nodes**2 / 2 + (m + math.exp(s) * nodes) ** 2 / 2)
    assert kl == pytest.approx(kl_standard_normal(column(m), column(s)).item())
    assert abs(kl - s**2 - m**2 / 2) / abs(s) ** 3 == pytest.approx(2 / 3, abs=0.05)


@pytest.mark.parametrize("s", [0.001, 0.01, 0.02])
def test_kl_in_bf16_has_no_digit_right_near_the_prior(s):
    t = torch.tensor([s], dtype=bfloat16)
    exact = kl_standard_normal(t.double(), t.double()).item()
    formula, better = (0.5 * (torch.exp(2 * v) - 1 - 2 * v + v.square()).item() for v in (t, t.float()))
    assert abs(formula / exact - 1) > 0.8
    assert abs(better / exact - 1) < 0.03
    assert kl_standard_normal(t, t).item() == pytest.approx(exact, rel=1e-6)
    # the gradient is zero where the exponential rounds to one
    edge = torch.tensor([2**-9 * 0.99, 2**-9 * 1.02], dtype=bfloat16)
    assert ((torch.exp(2 * edge) - 1) == 0).tolist() == [True, False]


@pytest.mark.parametrize("nll", [bernoulli_nll, partial(gaussian_nll, scale=0.5)], ids=["bce", "gaussian"])
def test_loss_under_autocast_is_float32_and_close(nll):
    torch.manual_seed(0)
    model = mlp_vae(64, 8, hidden_dims=(32,))
    x = to_unit_interval(digits()[0][:100], max_level=16)

    def loss(is_mixed: bool) -> Tensor:
        with torch.autocast("cpu", bfloat16, enabled=is_mixed):
            loc, log_scale = model.encode(x)
            params = model.decode(loc + log_scale.exp() * torch.randn(100, 8, generator=generator()))
            assert params.dtype == (bfloat16 if is_mixed else float32)
            return (nll(x, params) + kl_standard_normal(loc, log_scale)).mean()

    mixed, full = loss(True), loss(False)
    assert mixed.dtype == float32
    assert mixed.item() == pytest.approx(full.item(), rel=5e-3)


# --- slices, processes, reductions -----------------------------------------------------------------------


SIZES = [(13,), (5, 5, 3), (1, 12), (1,) * 13, (2, 7, 4), (4, 5, 4), (1, 2, 3, 7)]


@pytest.mark.equation("eq-accumulation", "eq-ddp-mean")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_parts_weighted_by_size_give_the_gradient_of_the_batch(vae, batch, sizes):
    """Added as slices and averaged over processes; the oracle is a gradient for each example on its own."""
    singles = [gradient(per_example(vae, x[None], e[None]).sum(), vae) for x, e in zip(*batch, strict=True)]
    expected = torch.stack(singles).mean(0)
    parts = list(zip(*(tensor.split(sizes) for tensor in batch), strict=True))
    slices = [gradient(len(x) / 13 * loss_with_noise(vae, x, eps), vae) for x, eps in parts]
    torch.testing.assert_close(sum(slices), expected, rtol=1e-10, atol=1e-13)
    shares = [gradient(len(parts) * len(x) / 13 * loss_with_noise(vae, x, eps), vae) for x, eps in parts]
    torch.testing.assert_close(torch.stack(shares).mean(0), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("micro_batch_size", [1, 4, 6, 13])
def test_fit_in_slices_walks_the_same_way(vae, batch, micro_batch_size):
    twins = [vae, copy.deepcopy(vae)]
    for twin, most in zip(twins, (None, micro_batch_size), strict=True):
        fit(twin, loss_with_noise, batch, num_epochs=4, batch_size=6, micro_batch_size=most, progress=False)
    torch.testing.assert_close(flat(twins[1]), flat(twins[0]), rtol=1e-9, atol=1e-12)


def test_logarithm_of_a_mean_is_not_a_mean_over_examples(vae, batch):
    def slope(x: Tensor) -> Tensor:
        return gradient((x - vae.decode(vae.encode(x)[0])).square().mean().log(), vae)

    whole = slope(batch[0])
    by_size = sum(len(part) / 13 * slope(part) for part in batch[0].split(5))
    assert (by_size - whole).norm() / whole.norm() > 1e-3


@pytest.mark.equation("eq-reductions")
def test_reductions_differ_by_batch_and_pixels(batch):
    x, _ = batch
    logits = torch.randn(13, 6, dtype=F64, generator=generator(2))
    total, mean = (F.binary_cross_entropy_with_logits(logits, x, reduction=r).item() for r in ("sum", "mean"))
    of_image = bernoulli_nll(x, logits).mean().item()
    assert [13 * of_image, 13 * 6 * mean] == pytest.approx([total] * 2, rel=1e-12)


def test_last_batch_of_mnist_counts_a_third_more_and_the_batch_factor_is_469():
    sizes = [len(part) for part in torch.arange(60_000).split(128)]
    assert (len(sizes), sizes[0], sizes[-1]) == (469, 128, 96)
    assert sizes[0] / sizes[-1] == pytest.approx(1.333, abs=5e-4)  # each batch counts as much as any other
    factor = 60_000 / 128  # the exercise's
    assert factor == pytest.approx(469, abs=0.5)
    assert 1 / factor == pytest.approx(0.0021, abs=5e-5)


@pytest.mark.equation("eq-batch-unbiased")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_factor_over_all_batches_averages_to_the_whole_sum(vae, batch, size):
    """Every batch without replacement, each as likely; gradients too."""
    losses = per_example(vae, *(tensor[:6] for tensor in batch))
    whole = losses.sum()
    rows = torch.combinations(torch.arange(6), size)
    mean = torch.stack([6 / size * per_example(vae, batch[0][r], batch[1][r]).sum() for r in rows]).mean()
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(gradient(mean, vae), gradient(whole, vae))


SCRIPT = """
import datetime, json, subprocess, sys
rank = len(sys.argv) - 2  # the process of rank 0 starts the other one
other = None if rank else subprocess.Popen([*sys.orig_argv, "1"])
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
patience = datetime.timedelta(seconds=100)
dist.init_process_group("gloo", f"file://{sys.argv[1]}/meet", patience, world_size=2, rank=rank)
torch.set_num_threads(1)
torch.manual_seed(0)
toy, data = torch.nn.Linear(5, 1).double(), torch.randn(7, 5).double()
shared, found = DistributedDataParallel(toy), {}
for sizes in ([4, 3], [6, 1]):
    share = data.split(sizes)[rank]
    for name in ("mean", "weighted", "sum"):
        losses = shared(share).square()
        toy.zero_grad()
        loss = losses.sum() if name == "sum" else losses.mean()
        (loss * (2 * len(share) / 7 if name == "weighted" else 1)).backward()
        found[f"{name} {sizes[1]}"] = toy.weight.grad.flatten().tolist()
dist.destroy_process_group()
if rank == 0:
    assert other.wait() == 0
    print(json.dumps(found))
"""


@pytest.mark.equation("eq-ddp-mean", "eq-ddp-sum")
def test_two_processes_average_weighted_means_to_the_gradient_of_one_and_sums_to_its_half(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = {name: torch.tensor(values, dtype=F64) for name, values in json.loads(done.stdout).items()}

    torch.manual_seed(0)
    toy, data = nn.Linear(5, 1).double(), torch.randn(7, 5).double()
    losses = toy(data).square()
    mean, half = gradient(losses.mean(), toy)[:5], gradient(losses.sum() / 2, toy)[:5]
    for second_share in (3, 1):
        torch.testing.assert_close(found[f"weighted {second_share}"], mean)
        assert (found[f"mean {second_share}"] - mean).norm() / mean.norm() > 0.01
        torch.testing.assert_close(found[f"sum {second_share}"], half)


# --- repeating -------------------------------------------------------------------------------------------


def summation_error_and_bound(terms: np.ndarray, *, pairwise: bool = False) -> tuple[Fraction, Fraction]:
    """Of a sum in float32 from left to right or by halves, exactly: ((1 + u)**(n - 1) - 1) sum |v|."""
    exact = [Fraction(float(v)) for v in terms]
    bound = ((1 + Fraction(1, 2**24)) ** (len(terms) - 1) - 1) * sum(map(abs, exact))
    while pairwise and len(terms) > 1:
        terms = np.append(terms[:-1:2] + terms[1::2], terms[len(terms) // 2 * 2 :])
    return abs(Fraction(float(np.add.accumulate(terms)[-1])) - sum(exact)), bound


@pytest.mark.equation("eq-summation-error")
@pytest.mark.parametrize("pairwise", [False, True], ids=["left-to-right", "pairwise"])
@pytest.mark.parametrize("seed", range(5))
def test_summation_error_is_bounded_in_every_order(seed, pairwise):
    values = torch.randn(60, generator=generator(seed)).mul(10).exp() * torch.tensor([1.0, -1.0]).repeat(30)
    for trial in range(5):
        order = torch.randperm(60, generator=generator(trial))
        error, bound = summation_error_and_bound(values[order].numpy(), pairwise=pairwise)
        assert error <= bound


@pytest.mark.equation("eq-summation-error")
def test_summation_bound_is_nearly_reached():
    """Each addition of half a unit in the last place is rounded away, so that the sum stays at 1."""
    values = np.array([1.0] + [2.0**-24] * 200, np.float32)
    error, bound = summation_error_and_bound(values)
    assert error == 200 * Fraction(1, 2**24)
    assert 0.99 * bound < error <= bound


def test_sums_depend_on_the_order():
    difference = (0.1 + 0.2) + 0.3 - (0.1 + (0.2 + 0.3))
    assert difference == pytest.approx(1.1e-16, rel=0.02)
    million, tenth = torch.tensor([1e6, 0.1])
    assert ((million + tenth) - million).item() == 0.125


def test_runs_part_where_an_input_of_a_relu_changes_sign():
    """Two runs that add up in another order: the gap never doubles before a sign differs."""
    x = to_unit_interval(digits()[0], max_level=16)
    torch.manual_seed(1)
    forth = mlp_vae(64, 8, hidden_dims=(64, 64))
    back, signs, gaps = copy.deepcopy(forth), {}, []
    optimizers = {run: Adam(run.parameters(), lr=0.01) for run in (forth, back)}
    for run in optimizers:
        for module in run.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(lambda _, inputs, __, run=run: signs[run].append(inputs[0] > 0))
    for _ in range(300):
        rows, eps = torch.randint(1797, (300,)), torch.randn(300, 8)
        for run, optimizer in optimizers.items():
            signs[run] = []
            optimizer.zero_grad()
            inputs = (x[rows], eps) if run is forth else (x[rows].flip(0), eps.flip(0))
            loss_with_noise(run, *inputs).backward()
            optimizer.step()
        if not torch.equal(torch.cat(signs[forth], 1), torch.cat(signs[back], 1).flip(0)):
            break
        weights = flat(forth)
        gaps.append(((flat(back) - weights).norm() / weights.norm()).item())
    growth = [after / before for before, after in itertools.pairwise(gaps) if before > 1e-8]
    assert 0 < gaps[-1] < 1e-3
    assert max(growth[20:], default=0.0) < 2


# --- exercises -------------------------------------------------------------------------------------------


def test_exercise_loader_share():
    load, compute = 60, 40
    assert (load + compute) / (load + compute / 20) == pytest.approx(1.6, abs=0.02)
    assert max(load, compute / 20) == max(load, compute)
    assert (load + compute) / max(load, compute / 20) == pytest.approx(1.67, abs=0.01)  # in the background


def test_exercise_half_overflow():
    terms = 32 * 3 * 64 * 64
    assert terms == 393_216
    limit = 65504 / terms
    assert limit == pytest.approx(1 / 6, rel=1e-3)
    u, v = torch.rand(2, 1_000_000, dtype=F64, generator=generator())
    assert (u - v).square().mean().item() == pytest.approx(1 / 6, rel=5e-3)
    assert torch.full((terms,), 1.01 * limit).half().sum().isinf()


def test_exercise_compile_epochs():
    assert pytest.approx(50_000) == 40 / (2.0e-3 - 1.2e-3)
    assert math.ceil(50_000 / (60_000 // 128)) == 107


@pytest.mark.parametrize(("kind", "factor", "limit"), [(SGD, 4, 1e-9), (Adam, 1, 1e-4)])
def test_exercise_ddp_rate(vae, batch, kind, factor, limit):
    def walk(divisor: float, rate: float) -> Tensor:
        model = copy.deepcopy(vae)
        optimizer = kind(model.parameters(), lr=rate)
        descend(optimizer, lambda _: per_example(model, *batch).sum() / divisor, 30)
        return flat(model)

    whole = walk(1, 1e-3)
    way = (whole - flat(vae)).norm()
    assert (walk(4, factor * 1e-3) - whole).norm() / way < limit
    assert (walk(4, 4 / factor * 1e-3) - whole).norm() / way > 0.3


def test_exercise_uneven_shares():
    losses = torch.zeros(10, dtype=F64, requires_grad=True)

    def weights(factors: list[float]) -> list[float]:
        """Of the images, in the average over the shares of the means times these factors."""
        means = torch.stack([share.mean() for share in losses.split([3, 3, 2, 2])])
        return torch.autograd.grad((torch.tensor(factors, dtype=F64) * means).mean(), losses)[0].tolist()

    assert weights([1.0] * 4) == pytest.approx([1 / 12] * 6 + [1 / 8] * 4)
    factors = [4 * n / 10 for n in (3, 3, 2, 2)]
    assert factors == pytest.approx([1.2, 1.2, 0.8, 0.8])
    assert weights(factors) == pytest.approx([0.1] * 10)


def test_exercise_frozen_weight():
    narrow, wide = torch.tensor(0.5).bfloat16(), torch.tensor(0.5)
    assert (narrow + 2**-9).item() == 0.5  # a tie
    assert (narrow + 2**-9 * 1.01).item() > 0.5
    for _ in range(1000):
        narrow, wide = narrow + 0.0005, wide + 0.0005
    assert narrow.item() == 0.5
    assert wide.item() == pytest.approx(1.0, abs=1e-4)


def test_exercise_seed_per_epoch(vae, batch):
    def epoch(model: VAE, optimizer: torch.optim.Optimizer, number: int) -> None:
        torch.manual_seed(1000 * 3 + number)
        rows = torch.randperm(13).split(5)
        descend(optimizer, lambda step: negative_elbo(model, batch[0][rows[step]]), len(rows))

    optimizer = Adam(vae.parameters())
    epoch(vae, optimizer, 0)
    saved = copy.deepcopy((vae.state_dict(), optimizer.state_dict()))
    epoch(vae, optimizer, 1)
    torch.rand(17)  # a new process has another state
    resumed = mlp_vae(6, 2, hidden_dims=(5,)).double()
    resumed.load_state_dict(saved[0])
    again = Adam(resumed.parameters())
    again.load_state_dict(saved[1])
    epoch(resumed, again, 1)
    assert torch.equal(flat(resumed), flat(vae))
