"""The equations and the exercises of the fifth chapter, each against an oracle without its formula."""

import copy
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vaecourse.datasets import digits, to_unit_interval
from vaecourse.densities import bernoulli_nll, gaussian_nll
from vaecourse.divergences import kl_standard_normal
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import negative_elbo
from vaecourse.training import fit

F64 = torch.float64
# significant binary digits, as the chapter's table prints them
FORMATS = pytest.mark.parametrize(
    ("dtype", "p"),
    [(torch.bfloat16, 8), (torch.float16, 11), (torch.float32, 24)],
    ids=["bf16", "float16", "float32"],
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def per_example(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """Negative ELBO of each example, with given noise."""
    loc, log_scale = vae.encode(x)
    logits = vae.decode(loc + log_scale.exp() * eps)
    return bernoulli_nll(x, logits) + kl_standard_normal(loc, log_scale)


def loss_with_noise(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    return per_example(vae, x, eps).mean()


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.ravel() for g in torch.autograd.grad(loss, list(model.parameters()))])


def flat(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


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
@pytest.mark.parametrize(
    ("data_dim", "latent_dim", "hidden_dims"), [(784, 20, (400,)), (64, 8, (64, 48)), (10, 3, (7, 6, 5))]
)
def test_step_flops_match_pytorch_counter(size, data_dim, latent_dim, hidden_dims):
    model = mlp_vae(data_dim, latent_dim, hidden_dims=hidden_dims)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    products = [m.in_features * m.out_features for m in layers]
    with FlopCounterMode(display=False) as counter:
        negative_elbo(model, torch.zeros(size, data_dim)).backward()
    expected = 6 * size * sum(products) - 2 * size * products[0]
    assert counter.get_total_flops() == expected
    if (data_dim, size) == (784, 1):
        assert expected == 3_280_000


@pytest.mark.equation("eq-adam-bytes")
def test_adam_reads_four_numbers_a_weight_and_writes_three():
    """Read is what changes a result when it is changed; written is what a step changes."""

    def step(changed: str | None = None) -> dict[str, Tensor]:
        weight = nn.Parameter(torch.linspace(-1, 1, 5, dtype=F64))
        optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
        weight.grad = torch.linspace(1, 2, 5, dtype=F64)
        optimizer.step()
        state = optimizer.state[weight]
        numbers = {"weight": weight.data, "gradient": weight.grad}
        numbers |= {"first": state["exp_avg"], "second": state["exp_avg_sq"]}
        assert {name for name, value in state.items() if value.shape == weight.shape} == {
            "exp_avg",
            "exp_avg_sq",
        }
        if changed is not None:
            numbers[changed].add_(0.3)
        before = {name: value.clone() for name, value in numbers.items()}
        optimizer.step()
        moved = {name: value - before[name] for name, value in numbers.items()}
        written = {name for name, value in moved.items() if value.abs().min() > 0}
        assert written == {"weight", "first", "second"}
        return {name: value.clone() for name, value in numbers.items()}

    unchanged = step()
    for name in unchanged:
        after = step(changed=name)
        assert any(not torch.equal(after[other], unchanged[other]) for other in ("weight", "first", "second"))
    num_read, num_written = len(unchanged), 3
    assert (num_read + num_written) * torch.float32.itemsize == 28


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
    exponent = torch.randint(-10, 11, (200_000,), generator=generator(1))
    v = mantissa * 2.0**exponent
    error = (v.to(dtype).double() - v).abs() / v
    assert error.max() <= 2.0**-p
    assert error.max() > 0.97 * 2.0**-p  # the bound is sharp


def test_formats_are_as_the_chapter_says():
    assert torch.finfo(torch.float16).max == 65504
    assert torch.finfo(torch.bfloat16).max > 3e38
    one, two_fifty_six = (torch.tensor(v, dtype=torch.bfloat16) for v in (1.0, 256.0))
    bits = torch.stack([one, two_fifty_six]).view(torch.int16)
    assert (bits + 1).view(torch.bfloat16).tolist() == [1.0078125, 258.0]  # the next numbers
    assert (one + 0.001).item() == 1
    assert (two_fifty_six + 1).item() == 256
    assert torch.tensor(2049.0).half().item() == 2048


def test_float16_overflows_where_the_chapter_says():
    assert math.log(65504) == pytest.approx(11.09, abs=5e-4)
    assert torch.tensor(11.0).exp().half().isfinite()
    assert torch.tensor(11.1).exp().half().isinf()
    assert 128 * 784 == 100_352 > 65_504
    assert torch.ones(128, 784, dtype=torch.float16).sum().isinf()
    assert torch.ones(128, 784, dtype=torch.bfloat16).sum().isfinite()


@FORMATS
@pytest.mark.equation("eq-saturation")
def test_probability_rounds_to_one_from_this_logit_on(dtype, p):
    """The threshold is found by bisection; probabilities come from mpmath, rounding is exact."""

    def rounds_to_one(a: mpmath.mpf) -> bool:
        gap = 1 / (1 + mpmath.exp(a))  # 1 - rho; the number below 1 is 1 - 2**-p
        below = 1 - torch.finfo(dtype).eps / 2
        assert torch.tensor(below, dtype=F64).to(dtype).item() == below
        return gap < (1 - mpmath.mpf(below)) / 2

    low, high = mpmath.mpf(1), mpmath.mpf(40)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if rounds_to_one(middle) else (middle, high)
    assert float(high) == pytest.approx(math.log(2 ** (p + 1) - 1), rel=1e-12)


def test_bf16_sigmoid_saturates_between_its_neighbouring_logits():
    logits = torch.tensor([6.21875, 6.25], dtype=torch.bfloat16)  # neighbours
    assert (torch.sigmoid(logits) == 1).tolist() == [False, True]
    value = F.binary_cross_entropy(torch.sigmoid(logits[1]).float(), torch.zeros(()))
    assert value.item() == 100


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
@pytest.mark.parametrize("sign", [-1, 1])
def test_kl_near_the_prior_is_a_sum_of_squares(m, sign):
    """The remainder, by mpmath from the integral of q log(q / p), falls like the third power of s."""
    remainders = []
    for size in ("0.1", "0.01", "0.001"):
        s = sign * mpmath.mpf(size)

        def integrand(t, s=s):
            z = m + mpmath.exp(s) * t
            log_ratio = -s - t**2 / 2 + z**2 / 2
            return mpmath.npdf(t) * log_ratio

        with mpmath.workdps(30):
            kl = mpmath.quad(integrand, [-14, -4, 0, 4, 14])
            assert float(kl) == pytest.approx(
                kl_standard_normal(
                    torch.tensor([[m]], dtype=F64), torch.tensor([[float(s)]], dtype=F64)
                ).item()
            )
            remainders.append(abs(kl - s**2 - mpmath.mpf(m) ** 2 / 2) / abs(s) ** 3)
    assert [float(r) for r in remainders] == pytest.approx([2 / 3] * 3, abs=0.05)


@pytest.mark.parametrize("s", [0.001, 0.01, 0.02])
def test_kl_in_bf16_has_no_digit_right_near_the_prior(s):
    t = torch.tensor(s, dtype=torch.bfloat16)
    exact = kl_standard_normal(t.double()[None], t.double()[None]).item()
    formula = (0.5 * (torch.exp(2 * t) - 1 - 2 * t + t.square())).item()
    widened = t.float()
    better = (0.5 * (torch.exp(2 * widened) - 1 - 2 * widened + widened.square())).item()
    assert abs(formula / exact - 1) > 0.8
    assert abs(better / exact - 1) < 0.03
    assert kl_standard_normal(t[None], t[None]).item() == pytest.approx(exact, rel=1e-6)


def test_kl_gradient_in_bf16_is_zero_where_the_exponential_rounds_to_one():
    t = torch.tensor([2**-9 * 0.99, 2**-9 * 1.02], dtype=torch.bfloat16)
    assert ((torch.exp(2 * t) - 1) == 0).tolist() == [True, False]


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_loss_under_autocast_is_float32_and_close(likelihood):
    torch.manual_seed(0)
    model = mlp_vae(64, 8, hidden_dims=(32,))
    x = to_unit_interval(digits()[0][:100], max_level=16)

    def loss(is_mixed: bool) -> Tensor:
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            loc, log_scale = model.encode(x)
            params = model.decode(loc + log_scale.exp() * torch.randn_like(loc.float()))
            assert params.dtype == (torch.bfloat16 if is_mixed else torch.float32)
            nll = gaussian_nll(x, params, 0.5) if likelihood == "gaussian" else bernoulli_nll(x, params)
            return (nll + kl_standard_normal(loc, log_scale)).mean()

    mixed, full = loss(True), loss(False)
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(full.item(), rel=5e-3)


# --- slices, processes, reductions -----------------------------------------------------------------------


@pytest.mark.equation("eq-accumulation")
@pytest.mark.parametrize("sizes", [(13,), (5, 5, 3), (1, 12), (1,) * 13, (2, 7, 4)], ids=str)
def test_slices_weighted_by_size_give_the_gradient_of_the_batch(vae, batch, sizes):
    """The oracle is a gradient for each example on its own, added up."""
    singles = [
        gradient(per_example(vae, x[None], eps[None]).sum(), vae) for x, eps in zip(*batch, strict=True)
    ]
    parts = zip(*(tensor.split(sizes) for tensor in batch), strict=True)
    found = sum(len(x) / 13 * gradient(loss_with_noise(vae, x, eps), vae) for x, eps in parts)
    torch.testing.assert_close(found, torch.stack(singles).mean(0), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("micro_batch_size", [1, 4, 6, 13])
def test_fit_in_slices_walks_the_same_way(vae, batch, micro_batch_size):
    twins = [vae, copy.deepcopy(vae)]
    for twin, most in zip(twins, (None, micro_batch_size), strict=True):
        fit(twin, loss_with_noise, batch, num_epochs=4, batch_size=6, micro_batch_size=most, progress=False)
    torch.testing.assert_close(flat(twins[1]), flat(twins[0]), rtol=1e-9, atol=1e-12)


def test_logarithm_of_a_mean_is_not_a_mean_over_examples(vae, batch):
    def log_mse(x: Tensor) -> Tensor:
        return (x - vae.decode(vae.encode(x)[0])).square().mean().log()

    x, _ = batch
    whole = gradient(log_mse(x), vae)
    by_size = sum(len(part) / 13 * gradient(log_mse(part), vae) for part in x.split(5))
    assert (by_size - whole).norm() / whole.norm() > 1e-3


@pytest.mark.equation("eq-reductions")
def test_reductions_differ_by_batch_and_pixels(batch):
    x, _ = batch
    logits = torch.randn(13, 6, dtype=F64, generator=generator(2))
    total = F.binary_cross_entropy_with_logits(logits, x, reduction="sum").item()
    of_pixel = F.binary_cross_entropy_with_logits(logits, x, reduction="mean").item()
    of_image = bernoulli_nll(x, logits).mean().item()
    assert total == pytest.approx(13 * of_image, rel=1e-12)
    assert total == pytest.approx(13 * 6 * of_pixel, rel=1e-12)


def test_last_batch_of_mnist_counts_a_third_more():
    sizes = [len(part) for part in torch.arange(60_000).split(128)]
    assert (len(sizes), sizes[-1]) == (469, 96)
    weight_in_last, weight_elsewhere = 1 / 469 / 96, 1 / 469 / 128
    assert weight_in_last / weight_elsewhere == pytest.approx(1.333, abs=5e-4)


@pytest.mark.equation("eq-batch-unbiased")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_factor_over_all_batches_averages_to_the_whole_sum(vae, batch, size):
    """Every batch without replacement, each as likely; gradients too."""
    x, eps = (tensor[:6] for tensor in batch)
    whole = per_example(vae, x, eps).sum()
    sums = []
    for chosen in itertools.combinations(range(6), size):
        rows = list(chosen)
        sums.append(6 / size * per_example(vae, x[rows], eps[rows]).sum())
    mean = torch.stack(sums).mean()
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(gradient(mean, vae), gradient(per_example(vae, x, eps).sum(), vae))


SCRIPT = """
import json, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", f"file://{folder}/meeting_point", rank=rank, world_size=2)
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
if rank == 0:
    with open(f"{folder}/found.json", "w") as file:
        json.dump(found, file)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def from_two_processes(tmp_path_factory) -> dict[str, Tensor]:
    """Gradients that two gloo processes average, as {kind and size of the second share: gradient}."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    ranks = [
        subprocess.Popen(
            [sys.executable, script, folder, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    text = Path(folder, "found.json").read_text()
    return {name: torch.tensor(values, dtype=F64) for name, values in json.loads(text).items()}


def alone(reduce: Callable[[Tensor], Tensor]) -> Tensor:
    torch.manual_seed(0)
    toy = nn.Linear(5, 1).double()
    losses = toy(torch.randn(7, 5).double()).square()
    return torch.autograd.grad(reduce(losses), toy.weight)[0].flatten()


@pytest.mark.equation("eq-ddp-mean")
@pytest.mark.parametrize("second_share", [3, 1])
def test_weighted_means_under_ddp_give_the_gradient_of_one_process(from_two_processes, second_share):
    expected = alone(torch.mean)
    torch.testing.assert_close(from_two_processes[f"weighted {second_share}"], expected)
    plain = from_two_processes[f"mean {second_share}"]
    assert (plain - expected).norm() / expected.norm() > 0.01


@pytest.mark.equation("eq-ddp-mean")
@pytest.mark.parametrize("sizes", [(13,), (4, 5, 4), (1, 2, 3, 7)], ids=str)
def test_weighted_means_average_to_the_gradient_of_the_batch(vae, batch, sizes):
    parts = zip(*(tensor.split(sizes) for tensor in batch), strict=True)
    world = len(sizes)
    grads = [gradient(world * len(x) / 13 * loss_with_noise(vae, x, eps), vae) for x, eps in parts]
    whole = gradient(loss_with_noise(vae, *batch), vae)
    torch.testing.assert_close(torch.stack(grads).mean(0), whole, rtol=1e-10, atol=1e-13)


@pytest.mark.equation("eq-ddp-sum")
@pytest.mark.parametrize("second_share", [3, 1])
def test_sums_under_ddp_are_half_of_one_process(from_two_processes, second_share):
    torch.testing.assert_close(from_two_processes[f"sum {second_share}"], alone(torch.sum) / 2)


# --- repeating -------------------------------------------------------------------------------------------


def float32_sum(values: list[float], order: list[int], *, pairwise: bool) -> float:
    """Sum in float32, one rounding for each addition, from left to right or by halves."""
    terms = [torch.tensor(values[i]) for i in order]
    while pairwise and len(terms) > 1:
        pairs = [terms[i : i + 2] for i in range(0, len(terms), 2)]
        terms = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total.item()


def summation_bound(values: list[float]) -> Fraction:
    """The exact bound: (1 + u)**(n - 1) - 1, times the sum of absolute values."""
    u = Fraction(1, 2**24)
    return ((1 + u) ** (len(values) - 1) - 1) * sum(abs(Fraction(v)) for v in values)


@pytest.mark.equation("eq-summation-error")
@pytest.mark.parametrize("pairwise", [False, True], ids=["left-to-right", "pairwise"])
@pytest.mark.parametrize("seed", range(5))
def test_summation_error_is_bounded_in_every_order(seed, pairwise):
    values = torch.randn(60, generator=generator(seed)).mul(10).exp().tolist()
    values = [v * (-1) ** i for i, v in enumerate(values)]
    exact = sum(Fraction(v) for v in values)
    for trial in range(5):
        order = torch.randperm(60, generator=generator(trial)).tolist()
        error = abs(Fraction(float32_sum(values, order, pairwise=pairwise)) - exact)
        assert error <= summation_bound(values)


@pytest.mark.equation("eq-summation-error")
def test_summation_bound_is_nearly_reached():
    """Each addition of half a unit in the last place is rounded away."""
    values = [1.0] + [2.0**-24] * 200
    exact = sum(Fraction(v) for v in values)
    total = float32_sum(values, list(range(201)), pairwise=False)
    error = abs(Fraction(total) - exact)
    assert total == 1
    assert 0.99 * summation_bound(values) < error <= summation_bound(values)


def test_sums_depend_on_the_order():
    difference = (0.1 + 0.2) + 0.3 - (0.1 + (0.2 + 0.3))
    assert difference == pytest.approx(1.1e-16, rel=0.02)
    million, tenth = torch.tensor([1e6, 0.1])
    assert ((million + tenth) - million).item() == 0.125


def test_runs_part_where_an_input_of_a_relu_changes_sign():
    """Two runs that add up in another order: the gap never doubles before a sign differs."""
    x = to_unit_interval(digits()[0], max_level=16)

    def walk(is_reversed: bool) -> tuple[list[Tensor], list[Tensor]]:
        torch.manual_seed(1)
        model = mlp_vae(64, 8, hidden_dims=(64, 64))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        signs: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(lambda _, inputs, __: signs.append(inputs[0] > 0))
        path, patterns = [], []
        for _ in range(300):
            chosen, eps = torch.randint(1797, (300,)), torch.randn(300, 8)
            if is_reversed:
                chosen, eps = chosen.flip(0), eps.flip(0)
            signs.clear()
            optimizer.zero_grad()
            loss_with_noise(model, x[chosen], eps).backward()
            optimizer.step()
            pattern = torch.cat(signs, dim=1)
            patterns.append(pattern.flip(0) if is_reversed else pattern)
            path.append(flat(model))
        return path, patterns

    (forth, signs_forth), (back, signs_back) = walk(False), walk(True)
    gaps = [((b - a).norm() / a.norm()).item() for a, b in zip(forth, back, strict=True)]
    pairs = zip(signs_forth, signs_back, strict=True)
    differing = [i for i, (a, b) in enumerate(pairs) if not torch.equal(a, b)]
    until = differing[0] if differing else len(gaps)
    growth = [after / before for before, after in itertools.pairwise(gaps[:until]) if before > 1e-8]
    assert 0 < gaps[until - 1] < 1e-3
    assert max(growth[20:], default=0.0) < 2


# --- exercises -------------------------------------------------------------------------------------------


def test_exercise_loader_share():
    load, compute = 60, 40
    speedup = (load + compute) / (load + compute / 20)
    assert speedup == pytest.approx(1.6, abs=0.02)
    assert max(load, compute / 20) == max(load, compute)
    in_background = (load + compute) / max(load, compute / 20)
    assert in_background == pytest.approx(1.67, abs=0.01)


def test_exercise_half_overflow():
    terms = 32 * 3 * 64 * 64
    assert terms == 393_216
    limit = 65504 / terms
    assert limit == pytest.approx(1 / 6, rel=1e-3)
    u, v = torch.rand(2, 1_000_000, dtype=F64, generator=generator())
    assert (u - v).square().mean().item() == pytest.approx(1 / 6, rel=5e-3)
    assert torch.full((terms,), 1.01 * limit).half().sum().isinf()


def test_exercise_compile_epochs():
    steps = 40 / (2.0e-3 - 1.2e-3)
    assert steps == pytest.approx(50_000)
    assert math.ceil(steps / (60_000 // 128)) == 107


@pytest.mark.parametrize(
    ("kind", "factor", "limit"),
    [(torch.optim.SGD, 4, 1e-9), (torch.optim.Adam, 1, 1e-4)],
    ids=["sgd-rate-times-4", "adam-same-rate"],
)
def test_exercise_ddp_rate(vae, batch, kind, factor, limit):
    def walk(divisor: float, rate: float) -> Tensor:
        model = copy.deepcopy(vae)
        optimizer = kind(model.parameters(), lr=rate)
        for _ in range(30):
            optimizer.zero_grad()
            (per_example(model, *batch).sum() / divisor).backward()
            optimizer.step()
        return flat(model)

    start, rate = flat(vae), 1e-3
    whole = walk(1, rate)
    way = (whole - start).norm()
    assert (walk(4, factor * rate) - whole).norm() / way < limit
    other = 1 if factor == 4 else 4
    assert (walk(4, other * rate) - whole).norm() / way > 0.3


def test_exercise_batch_factor(vae, batch):
    x, eps = batch
    loc, log_scale = vae.encode(x)
    recon = bernoulli_nll(x, vae.decode(loc + log_scale.exp() * eps)).sum()
    kl = kl_standard_normal(loc, log_scale).sum()
    factor = 60_000 / 128
    torch.testing.assert_close(factor * recon + kl, factor * (recon + 128 / 60_000 * kl))
    assert 1 / factor == pytest.approx(0.0021, abs=5e-5)
    assert factor == pytest.approx(469, abs=0.5)


def test_exercise_uneven_shares():
    losses = torch.zeros(10, dtype=F64, requires_grad=True)
    means = torch.stack([share.mean() for share in losses.split([3, 3, 2, 2])])
    (weights,) = torch.autograd.grad(means.mean(), losses)
    assert weights.tolist() == pytest.approx([1 / 12] * 6 + [1 / 8] * 4)
    factors = torch.tensor([4 * n / 10 for n in (3, 3, 2, 2)], dtype=F64)
    assert factors.tolist() == pytest.approx([1.2, 1.2, 0.8, 0.8])
    means = torch.stack([share.mean() for share in losses.split([3, 3, 2, 2])])
    (weights,) = torch.autograd.grad((factors * means).mean(), losses)
    assert weights.tolist() == pytest.approx([0.1] * 10)


def test_exercise_frozen_weight():
    weight = torch.tensor(0.5).bfloat16()
    moved = weight.clone()
    for _ in range(1000):
        moved = moved + 0.0005
    assert moved.item() == 0.5
    assert (weight + 2**-9).item() == 0.5  # a tie
    assert (weight + 2**-9 * 1.01).item() > 0.5
    wide = torch.tensor(0.5)
    for _ in range(1000):
        wide = wide + 0.0005
    assert wide.item() == pytest.approx(1.0, abs=1e-4)


def test_exercise_seed_per_epoch(vae, batch):
    def epoch(model: VAE, optimizer: torch.optim.Optimizer, number: int) -> None:
        torch.manual_seed(1000 * 3 + number)
        for rows in torch.randperm(13).split(5):
            optimizer.zero_grad()
            negative_elbo(model, batch[0][rows]).backward()
            optimizer.step()

    optimizer = torch.optim.Adam(vae.parameters())
    epoch(vae, optimizer, 0)
    saved = copy.deepcopy((vae.state_dict(), optimizer.state_dict()))
    epoch(vae, optimizer, 1)
    torch.rand(17)  # a new process has another state
    resumed = mlp_vae(6, 2, hidden_dims=(5,)).double()
    resumed.load_state_dict(saved[0])
    again = torch.optim.Adam(resumed.parameters())
    again.load_state_dict(saved[1])
    epoch(resumed, again, 1)
    assert torch.equal(flat(resumed), flat(vae))
