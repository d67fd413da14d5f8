import contextlib
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.models import GaussianRegressor, LinearVAE, mlp, mlp_vae
from vaecourse.objectives import negative_elbo
from vaecourse.training import History, fit


def squared_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def line(num_points: int = 32) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, num_points).unsqueeze(1)
    return x, 3 * x + 1


def layer(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(1, 1)


def state(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def run(model: nn.Module, data=None, loss_fn=squared_error, **arguments) -> History:
    arguments = {"num_epochs": 3, "batch_size": 8, **arguments}
    return fit(model, loss_fn, line() if data is None else data, **arguments)


# --- it trains -------------------------------------------------------------------------------------------


def test_fit_finds_a_line():
    model = layer()
    run(model, num_epochs=60, learning_rate=0.1)
    assert model.weight.item() == pytest.approx(3, abs=0.02)
    assert model.bias.item() == pytest.approx(1, abs=0.02)


def test_fit_regressor_learns_location_and_scale():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2000, 1, generator=generator)
    y = 2 * x + 0.3 * torch.randn(2000, 1, generator=generator)
    torch.manual_seed(0)
    model = GaussianRegressor(mlp([1, 1]), GaussianLikelihood("learned"))
    run(model, (x, y), lambda m, *batch: m.loss(*batch), num_epochs=40, batch_size=100, learning_rate=0.02)
    slope, intercept = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x)], 1), y).solution.flatten()
    residual = (y - slope * x - intercept).square().mean().sqrt()
    assert model.network[0].weight.item() == pytest.approx(slope.item(), abs=0.05)
    assert model.likelihood.scale.item() == pytest.approx(residual.item(), abs=0.01)


def test_fit_linear_vae_approaches_ppca(digits_x):
    """Training by sampled gradients ends near the optimum that eigendecomposition gives."""
    torch.manual_seed(0)
    model = LinearVAE(64, 3, scale=0.5**0.5)
    start = model.weight.detach() @ model.weight.detach().T
    run(model, digits_x.float(), negative_elbo, num_epochs=40, batch_size=100, learning_rate=1e-2)
    best = LinearVAE.from_ppca(digits_x, 3, scale=0.5**0.5)
    target = best.weight @ best.weight.T  # does not depend on rotation, which is learnt last
    reached = model.double().weight @ model.weight.T
    assert (start - target).norm() > target.norm()
    assert (reached - target).norm() < 0.4 * target.norm()  # 0.2 to 0.3 over seeds: noise of Adam's steps
    gap = (best.log_likelihood(digits_x) - model.log_likelihood(digits_x)).mean().item()
    assert 0 < gap < 0.03  # of 41.27 nats; about 0.01 over seeds


def test_fit_linear_vae_collapses_where_every_eigenvalue_is_below_the_variance(digits_x):
    torch.manual_seed(0)
    model = LinearVAE(64, 3, scale=1.0)
    before = model.weight.square().sum().item()
    run(model, digits_x.float(), negative_elbo, num_epochs=40, batch_size=100, learning_rate=1e-2)
    assert before > 10
    assert model.weight.square().sum().item() < 0.05


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_fit_takes_the_steps_of_the_optimizer_it_is_given(name):
    """One batch an epoch: the same as a loop by hand."""
    model, by_hand = layer(), layer()
    run(model, batch_size=32, optimizer=getattr(torch.optim, name)(model.parameters(), lr=0.1))
    optimizer = getattr(torch.optim, name)(by_hand.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        squared_error(by_hand, *line()).backward()
        optimizer.step()
    for ours, theirs in zip(state(model), state(by_hand), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # the batch is shuffled


@pytest.mark.parametrize(
    ("arguments", "rate"), [({}, 1e-3), ({"learning_rate": 0.05}, 0.05)], ids=["default", "given"]
)
def test_fit_uses_adam_unless_told(arguments, rate):
    model = layer()
    before = state(model)
    run(model, num_epochs=1, batch_size=32, **arguments)
    for ours, theirs in zip(state(model), before, strict=True):
        # Adam's first step has the length of the learning rate, whatever the gradient
        torch.testing.assert_close((ours - theirs).abs(), torch.full_like(ours, rate), rtol=1e-4, atol=0)


# --- what it reports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 8, 32, 1000])
def test_fit_loss_is_mean_over_all_examples(batch_size):
    """With weights that cannot move, an uneven last batch included."""
    model = layer()
    expected = squared_error(model, *line()).item()
    history = run(model, batch_size=batch_size, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    assert history.loss == pytest.approx([expected] * 3, rel=1e-6)


def test_fit_history_has_one_entry_per_epoch():
    history = run(layer(), num_epochs=5)
    assert len(history.loss) == len(history.seconds) == 5
    assert all(seconds > 0 for seconds in history.seconds)


def test_fit_uses_every_example_once_an_epoch_in_a_new_order():
    seen: list[list[float]] = []

    def spy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(x.flatten().tolist())
        return squared_error(model, x, y)

    run(layer(), loss_fn=spy, num_epochs=2, batch_size=10)
    assert [len(batch) for batch in seen] == [10, 10, 10, 2] * 2
    first, second = (list(itertools.chain(*epoch)) for epoch in (seen[:4], seen[4:]))
    assert sorted(first) == sorted(second) == line()[0].flatten().tolist()
    assert first != second and first != sorted(first)


def test_fit_keeps_rows_of_several_tensors_together():
    def check(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        torch.testing.assert_close(y, 3 * x + 1)
        return squared_error(model, x, y)

    run(layer(), loss_fn=check)


def test_fit_prints_nothing_when_not_a_terminal(capfd):
    run(layer())
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False)])
def test_fit_shows_progress_on_a_terminal_only_if_asked(progress, shown, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run(layer(), progress=progress)
    assert ("epoch" in capsys.readouterr().err) == shown


# --- state it leaves behind ------------------------------------------------------------------------------


def test_fit_is_reproducible_given_seed():
    def train(seed: int) -> list[Tensor]:
        torch.manual_seed(0)
        vae = mlp_vae(4, 2, hidden_dims=(3,))
        run(vae, torch.linspace(0, 1, 80).reshape(20, 4), negative_elbo, seed=seed)
        return state(vae)

    first, again, other = train(1), train(1), train(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_fit_does_not_depend_on_global_random_state():
    weights = []
    for global_seed in (1, 2):
        model = layer()
        torch.manual_seed(global_seed)
        run(model)
        weights.append(state(model))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("factor", [1.0, math.nan], ids=["success", "failure"])
def test_fit_leaves_global_random_state_untouched(factor):
    model = layer()
    before = torch.get_rng_state()
    expected = pytest.raises(FloatingPointError) if math.isnan(factor) else contextlib.nullcontext()
    with expected:
        run(model, loss_fn=lambda *batch: factor * squared_error(*batch))
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_trains_in_training_mode_and_ends_in_evaluation_mode():
    modes = []

    def spy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        modes.append(model.training)
        return squared_error(model, x, y)

    model = layer().eval()
    run(model, loss_fn=spy)
    assert all(modes) and not model.training


def test_fit_leaves_the_data_untouched():
    x, y = line()
    run(layer(), (x, y))
    assert torch.equal(x, line()[0]) and torch.equal(y, line()[1])


def test_fit_moves_model_and_data_to_device():
    """The meta device computes shapes only: everything must arrive there before the loss is read."""
    devices = set()

    def spy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        devices.update(tensor.device.type for tensor in (x, y, *model.parameters()))
        raise KeyboardInterrupt  # a meta tensor has no loss to read

    with pytest.raises(KeyboardInterrupt):
        run(layer(), loss_fn=spy, device="meta")
    assert devices == {"meta"}


@pytest.mark.gpu
def test_fit_agrees_on_cpu_and_gpu(accelerator):
    """Without noise in the loss, and with one batch an epoch, both take the same steps up to rounding."""
    on_cpu, on_device = layer(), layer()
    first = run(on_cpu, batch_size=32, num_epochs=20, learning_rate=0.1)
    second = run(on_device, batch_size=32, num_epochs=20, learning_rate=0.1, device=accelerator)
    assert on_device.weight.device.type == accelerator.type
    assert second.loss == pytest.approx(first.loss, rel=1e-4)
    for ours, theirs in zip(state(on_device.cpu()), state(on_cpu), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# --- faults ----------------------------------------------------------------------------------------------


def nan_at(step: int, kind: str):
    """A loss that turns bad at one step: its value, or only its gradient."""
    count = iter(range(1000))

    def loss_fn(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = squared_error(model, x, y)
        if next(count) != step:
            return loss
        if kind == "gradient":  # finite, with the derivative 0 * inf
            return loss + (model.weight * 0).abs().sqrt().sum()
        return loss * math.nan if kind == "nan" else loss / 0

    return loss_fn


@pytest.mark.parametrize(
    ("kind", "message"),
    [("nan", "the loss is nan"), ("inf", "the loss is inf"), ("gradient", "a gradient is not finite")],
)
def test_fit_stops_before_a_bad_step_and_names_it(kind, message):
    model = layer()
    with pytest.raises(FloatingPointError, match=f"{message} at epoch 1, step 2"):
        run(model, loss_fn=nan_at(4 + 2, kind))  # four steps an epoch
    stopped = state(model)
    assert all(weight.isfinite().all() for weight in stopped)

    steps = iter(range(1000))

    def interrupted(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if next(steps) == 4 + 2:
            raise KeyboardInterrupt
        return squared_error(model, x, y)

    healthy_model = layer()
    with pytest.raises(KeyboardInterrupt):
        run(healthy_model, loss_fn=interrupted)
    for ours, theirs in zip(stopped, state(healthy_model), strict=True):
        assert torch.equal(ours, theirs)  # six steps were taken, the bad one left no trace


def test_fit_says_at_which_step_bad_data_were_found():
    x = torch.full((8, 4), 0.5)
    x[5] = 255.0
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]") as caught:
        run(mlp_vae(4, 2), x, negative_elbo, batch_size=8)
    assert caught.value.__notes__ == ["raised by loss_fn at epoch 0, step 0"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1])
def test_fit_rejects_nonfinite_data_before_the_first_step(bad, position):
    data = [tensor.clone() for tensor in line()]
    data[position][7] = bad
    model = layer()
    before = state(model)
    with pytest.raises(ValueError, match=rf"data\[{position}\] holds NaN or infinite values"):
        run(model, tuple(data))
    assert all(torch.equal(a, b) for a, b in zip(before, state(model), strict=True))


@pytest.mark.parametrize(
    ("data", "lengths"),
    [
        ((), r"\[\]"),
        (torch.zeros(0, 1), r"\[0\]"),
        ((torch.zeros(0, 1), torch.zeros(0, 1)), r"\[0, 0\]"),
        ((torch.zeros(4, 1), torch.zeros(5, 1)), r"\[4, 5\]"),
    ],
    ids=["nothing", "empty", "both-empty", "unequal"],
)
def test_fit_rejects_empty_or_unequal_data(data, lengths):
    with pytest.raises(
        ValueError, match=f"at least one example, equally many in each tensor, got lengths {lengths}"
    ):
        run(layer(), data)


@pytest.mark.parametrize(("num_epochs", "batch_size"), [(0, 8), (3, 0), (-1, 8), (3, -8)])
def test_fit_rejects_sizes_below_one(num_epochs, batch_size):
    message = f"num_epochs and batch_size must be at least 1, got {num_epochs} and {batch_size}"
    with pytest.raises(ValueError, match=message):
        run(layer(), num_epochs=num_epochs, batch_size=batch_size)


def test_fit_rejects_learning_rate_beside_an_optimizer():
    model = layer()
    with pytest.raises(ValueError, match=r"give learning_rate .* or an optimizer of your own, not both"):
        run(model, learning_rate=0.1, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
