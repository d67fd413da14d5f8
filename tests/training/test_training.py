import contextlib
import itertools
import math
import pickle
import re

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from tests.core.examples import F32, F64, LIKELIHOODS, data, normal
from tests.training.examples import LateGuard, StopError, given_noise, same, state
from vaecourse._checks import NotFinite
from vaecourse.densities import gaussian_nll
from vaecourse.divergences import kl_standard_normal
from vaecourse.likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood
from vaecourse.linear_vae import LinearVAE
from vaecourse.models import VAE, GaussianRegressor, mlp_vae
from vaecourse.networks import mlp
from vaecourse.objectives import negative_elbo
from vaecourse.training import (
    Checkpoints,
    History,
    TrainingDiverged,
    available_devices,
    choose_device,
    compiler_problem,
    fit,
)
from vaecourse.training.step import BatchLoss, Run


def squared_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def watched(look):
    """The squared error, after a look at the model and its batch."""

    def loss_fn(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        look(model, x, y)
        return squared_error(model, x, y)

    return loss_fn


def line(num_points: int = 32) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, num_points).unsqueeze(1)
    return x, 3 * x + 1


def layer(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(1, 1)


def sgd(model: nn.Module, **options: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def run(model: nn.Module, loss_fn=squared_error, **arguments) -> History:
    return fit(model, loss_fn, **{"data": line(), "num_epochs": 3, "batch_size": 8, **arguments})


# --- it trains -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "is_same"), [(0, True), (1, False)])
def test_seed_decides_the_order_of_the_data(seed, is_same):
    def batches(seed: int) -> list[list[float]]:
        seen: list[list[float]] = []
        run(layer(), watched(lambda model, x, y: seen.append(x.flatten().tolist())), seed=seed, num_epochs=1)
        return seen

    assert (batches(0) == batches(seed)) == is_same


def test_fit_finds_a_line():
    model = layer()
    run(model, num_epochs=60, learning_rate=0.1)
    assert (model.weight.item(), model.bias.item()) == pytest.approx((3, 1), abs=0.02)


def test_fit_regressor_learns_location_and_scale():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2000, 1, generator=generator)
    y = 2 * x + 0.3 * torch.randn(2000, 1, generator=generator)
    torch.manual_seed(0)
    model = GaussianRegressor(mlp([1, 1]), GaussianLikelihood("learned"))
    run(model, lambda m, *xy: m.loss(*xy), data=(x, y), num_epochs=25, batch_size=200, learning_rate=0.05)
    slope, intercept = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x)], 1), y).solution.flatten()
    residual = (y - slope * x - intercept).square().mean().sqrt()
    assert model.network[0].weight.item() == pytest.approx(slope.item(), abs=0.05)
    assert model.likelihood.scale.item() == pytest.approx(residual.item(), abs=0.01)


@pytest.mark.long
def test_fit_linear_vae_approaches_ppca(digits_x):
    """Training by sampled gradients ends near the optimum that eigendecomposition gives."""
    torch.manual_seed(0)
    model = LinearVAE(64, 3, scale=0.5**0.5)
    start = model.weight.detach() @ model.weight.detach().T
    run(model, negative_elbo, data=digits_x.float(), num_epochs=40, batch_size=200, learning_rate=0.02)
    best = LinearVAE.from_ppca(digits_x, 3, scale=0.5**0.5)
    target = best.weight @ best.weight.T  # does not depend on rotation, which is learnt last
    reached = model.double().weight @ model.weight.T
    assert (start - target).norm() > target.norm()
    assert (reached - target).norm() < 0.4 * target.norm()  # 0.2 to 0.35 over seeds: noise of Adam's steps
    gap = (best.log_likelihood(digits_x) - model.log_likelihood(digits_x)).mean().item()
    assert 0 < gap < 0.03  # of 41.27 nats; about 0.01 over seeds


def test_fit_linear_vae_collapses_where_every_eigenvalue_is_below_the_variance(digits_x):
    torch.manual_seed(0)
    model = LinearVAE(64, 3, scale=1.0)
    before = model.weight.square().sum().item()
    run(model, negative_elbo, data=digits_x.float(), num_epochs=20, batch_size=200, learning_rate=0.02)
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
    torch.testing.assert_close(state(model), state(by_hand), rtol=1e-6, atol=1e-6)  # the batch is shuffled


@pytest.mark.parametrize(("arguments", "rate"), [({}, 1e-3), ({"learning_rate": 0.05}, 0.05)], ids=str)
def test_fit_uses_adam_unless_told(arguments, rate):
    model = layer()
    before = state(model)
    run(model, num_epochs=1, batch_size=32, **arguments)
    # Adam's first step has the length of the learning rate, whatever the gradient
    steps = [(ours - theirs).abs().item() for ours, theirs in zip(state(model), before, strict=True)]
    assert steps == pytest.approx([rate, rate], rel=1e-4)


def test_fit_leaves_a_parameter_alone_that_the_loss_does_not_use():
    model = layer()
    model.unused = nn.Parameter(torch.ones(2))
    run(model)
    assert model.unused.tolist() == [1.0, 1.0]


# --- what it reports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 8, 32, 1000])
def test_fit_loss_is_mean_over_all_examples(batch_size):
    """With weights that cannot move, an uneven last batch included."""
    model = layer()
    expected = squared_error(model, *line()).item()
    history = run(model, batch_size=batch_size, optimizer=sgd(model, lr=0.0))
    assert history.loss == pytest.approx([expected] * 3, rel=1e-6)


def test_fit_history_has_one_entry_per_epoch():
    history = run(layer(), num_epochs=5)
    assert len(history.loss) == len(history.seconds) == 5 and min(history.seconds) > 0


def test_fit_uses_every_example_once_an_epoch_in_a_new_order():
    seen = []
    look = watched(lambda model, x, y: seen.append(x.flatten().tolist()))
    run(layer(), look, num_epochs=2, batch_size=10)
    assert [len(batch) for batch in seen] == [10, 10, 10, 2] * 2
    first, second = (list(itertools.chain(*epoch)) for epoch in (seen[:4], seen[4:]))
    assert sorted(first) == sorted(second) == line()[0].flatten().tolist()
    assert first != second and first != sorted(first)


def test_fit_keeps_rows_of_several_tensors_together():
    run(layer(), watched(lambda model, x, y: torch.testing.assert_close(y, 3 * x + 1)))


def test_fit_prints_nothing_when_not_a_terminal(capfd):
    run(layer())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [True, False])
def test_fit_shows_progress_on_a_terminal_only_if_asked(progress, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run(layer(), progress=progress)
    assert ("epoch" in capsys.readouterr().err) == progress


# --- state it leaves behind ------------------------------------------------------------------------------


def test_fit_is_reproducible_given_seed():
    def train(seed: int) -> list[Tensor]:
        torch.manual_seed(0)
        vae = mlp_vae(4, 2, hidden_dims=(3,))
        run(vae, negative_elbo, data=torch.linspace(0, 1, 80).reshape(20, 4), seed=seed)
        return state(vae)

    first, again, other = train(1), train(1), train(2)
    assert same(first, again)
    assert not same(first, other)


def test_fit_does_not_depend_on_global_random_state():
    models = layer(), layer()
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        run(model)
    assert same(*map(state, models))


@pytest.mark.parametrize("factor", [1.0, math.nan], ids=["success", "failure"])
def test_fit_leaves_global_random_state_untouched(factor):
    model, before = layer(), torch.get_rng_state()
    with contextlib.nullcontext() if factor == 1 else pytest.raises(FloatingPointError):
        run(model, loss_fn=lambda *batch: factor * squared_error(*batch))
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_trains_in_training_mode_and_ends_in_evaluation_mode():
    model, modes = layer().eval(), []
    run(model, watched(lambda model, x, y: modes.append(model.training)))
    assert all(modes) and not model.training


def test_fit_leaves_the_data_untouched():
    data = line()
    run(layer(), data=data)
    assert same(data, line())


# --- devices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_fit_runs_an_epoch_on_the_device_without_waiting_for_it(micro_batch_size, monkeypatch):
    """The meta device refuses to mix with the CPU, and has no values: nothing may be read before the end."""
    devices, devices_of_indices = [], set()
    take_step = Run.take_step

    def spy_step(run: Run, tensors: tuple[Tensor, ...], indices: Tensor) -> None:
        devices_of_indices.add(indices.device.type)
        take_step(run, tensors, indices)

    def look(model: nn.Module, *batch: Tensor) -> None:
        devices.append({tensor.device.type for tensor in (*batch, *model.parameters())})

    monkeypatch.setattr(Run, "take_step", spy_step)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensors"):
        run(layer(), watched(look), device="meta", micro_batch_size=micro_batch_size)
    assert devices == [{"meta"}] * (4 if micro_batch_size is None else 12)  # an epoch, then the look
    assert devices_of_indices == {"meta"}


def test_choose_device_takes_the_best_there_is(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    assert available_devices() == ["cuda", "mps", "cpu"]
    taken = [choose_device(name) for name in ("auto", "cuda", "cuda:0", "cuda:1")]
    assert taken == [torch.device("cuda", index) for index in (1, 1, 0, 1)]
    with pytest.raises(ValueError, match=r"device 'cuda:2' is not available: there are 2 GPUs"):
        choose_device("cuda:2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto") == torch.device("mps")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "device 'cuda' is not available; available here: cpu; 'auto' takes the first"),
        ("mps", "device 'mps' is not available; available here: cpu"),
        (torch.device("cuda:1"), "device 'cuda:1' is not available; available here: cpu"),
        ("gpu", "torch knows no device 'gpu'; available here: cpu"),
    ],
    ids=str,
)
def test_fit_names_the_devices_that_there_are(name, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        run(layer(), device=name)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


@pytest.mark.gpu
def test_fit_agrees_on_cpu_and_gpu(accelerator):
    """Without noise in the loss, and with one batch an epoch, both take the same steps up to rounding."""
    on_cpu, on_device = layer(), layer()
    arguments = {"batch_size": 32, "num_epochs": 20, "learning_rate": 0.1}
    first, second = run(on_cpu, **arguments), run(on_device, **arguments, device=accelerator)
    assert on_device.weight.device.type == accelerator.type
    assert second.loss == pytest.approx(first.loss, rel=1e-4)
    torch.testing.assert_close(state(on_device.cpu()), state(on_cpu), rtol=1e-4, atol=1e-5)


# --- faults ----------------------------------------------------------------------------------------------


def spoiled_at(step: int, kind: str):
    """A loss that turns bad at one step: its value, or only its gradient."""
    count = itertools.count()

    def loss_fn(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = squared_error(model, x, y)
        if next(count) != step:
            return loss
        if kind == "stop":
            raise StopError
        if kind == "gradient":  # finite, with the derivative 0 * inf
            return loss + (model.weight * 0).abs().sqrt().sum()
        return loss + (math.nan if kind == "nan" else math.inf)

    return loss_fn


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "the loss is nan"),
        ("inf", "the loss is inf"),
        ("gradient", r"the gradient of weight \(parameter group 0\) is not finite"),
    ],
)
def test_fit_stops_before_a_bad_step_and_names_it(kind, message):
    model, healthy_model = layer(), layer()
    with pytest.raises(TrainingDiverged, match=f"at epoch 1, step 2: {message}"):
        run(model, spoiled_at(4 + 2, kind))  # four steps an epoch
    with pytest.raises(StopError):
        run(healthy_model, spoiled_at(4 + 2, "stop"))
    assert all(weight.isfinite().all() for weight in state(model))
    assert same(state(model), state(healthy_model))  # six steps were taken, the bad one left no trace


def test_fit_says_at_which_step_bad_data_were_found():
    x = torch.full((8, 4), 0.5)
    x[5] = 255.0
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]") as caught:
        run(mlp_vae(4, 2), negative_elbo, data=x)
    assert caught.value.__notes__ == ["raised by loss_fn at epoch 0, step 0"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1])
def test_fit_rejects_nonfinite_data_before_the_first_step(bad, position):
    model, data = layer(), line()
    data[position][7] = bad
    with pytest.raises(ValueError, match=rf"data\[{position}\] holds NaN or infinite values"):
        run(model, data=data)
    assert same(state(model), state(layer()))


LENGTHS = "at least one example, equally many in each tensor, got lengths {}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": ()}, LENGTHS.format([])),
        ({"data": torch.zeros(0, 1)}, LENGTHS.format([0])),
        ({"data": (torch.zeros(0, 1), torch.zeros(0, 1))}, LENGTHS.format([0, 0])),
        ({"data": (torch.zeros(4, 1), torch.zeros(5, 1))}, LENGTHS.format([4, 5])),
        ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_epochs": -1}, "num_epochs must be at least 1, got -1"),
        ({"batch_size": -8}, "batch_size must be at least 1, got -8"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"precision": "fp16"}, "precision must be 'float32' or 'bf16', got 'fp16'"),
    ],
    ids=str,
)
def test_fit_rejects_arguments_without_meaning(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run(layer(), **arguments)


def test_fit_rejects_a_loss_that_is_not_one_number():
    message = r"loss_fn must return one number, of shape \(\), got shape \(8, 1\)"
    with pytest.raises(ValueError, match=message):
        run(layer(), loss_fn=lambda model, x, y: (model(x) - y).square())


def test_fit_rejects_a_batch_smaller_than_the_number_of_processes(monkeypatch):
    monkeypatch.setattr("vaecourse.training.step.place_among_processes", lambda: (0, 3))
    with pytest.raises(ValueError, match="a batch of 2 cannot be shared by 3 processes"):
        run(layer(), batch_size=2)


@pytest.mark.parametrize("kind", ["nan", "gradient"])
def test_fit_names_parameters_and_their_groups(kind):
    model = layer()
    groups = [{"params": [model.bias]}, {"params": [model.weight], "lr": 0.2}]
    with pytest.raises(TrainingDiverged) as caught:
        run(model, spoiled_at(2, kind), optimizer=torch.optim.SGD(groups, lr=0.1))
    assert ("weight (parameter group 1)" in caught.value.reason) == (kind == "gradient")
    assert (caught.value.epoch, caught.value.step, caught.value.checkpoint) == (0, 2, None)
    assert str(caught.value).endswith("the weights are those before that step; there is no checkpoint")


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_fit_stops_before_a_bad_step_without_looking_at_it(kind, monkeypatch):
    """As on an accelerator: the optimiser is told on the device, and the look comes at the epoch's end."""
    monkeypatch.setattr("vaecourse.training.step.Guard", LateGuard)
    late, at_once = layer(), layer()
    optimizer = torch.optim.Adam(late.parameters(), lr=0.1, fused=True)
    with pytest.raises(FloatingPointError, match="at epoch 1, step 2") as caught:
        run(late, spoiled_at(4 + 2, kind), optimizer=optimizer)
    monkeypatch.undo()
    with pytest.raises(FloatingPointError) as expected:
        run(at_once, spoiled_at(4 + 2, kind), learning_rate=0.1)
    assert str(caught.value) == str(expected.value)
    assert same(state(late), state(at_once))
    assert not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")


def refusing(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return gaussian_nll(y, model(x), 1.0).mean()


@pytest.mark.parametrize("rate", [1e10, 1e30])
def test_density_that_refuses_numbers_in_the_middle_of_a_run_is_a_divergence(rate):
    torch.manual_seed(0)
    model = mlp_vae(4, 2)
    with pytest.raises(TrainingDiverged, match=r"(logits|log_scale) must be finite, got") as caught:
        run(model, negative_elbo, data=data(32, 4), learning_rate=rate, num_epochs=100)
    error = caught.value
    assert isinstance(error, FloatingPointError) and isinstance(error.__cause__, NotFinite)
    assert error.reason == str(error.__cause__) and error.checkpoint is None
    assert (error.epoch, error.step) > (0, 0) and len(error.history.loss) == error.epoch
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_scale_that_has_overflowed_is_a_divergence_and_a_negative_one_a_mistake():
    def with_scale(scale: Tensor):
        return lambda model, x, y: gaussian_nll(y, model(x), scale).mean()

    for scale in (torch.tensor(math.inf), torch.tensor(0.0), torch.tensor(math.nan)):
        with pytest.raises(TrainingDiverged, match="scale is a standard deviation"):
            run(layer(), with_scale(scale))
    with pytest.raises(ValueError, match="scale is a standard deviation"):
        run(layer(), with_scale(torch.tensor(-1.0)))


def test_validation_that_has_overflowed_is_a_divergence():
    def loss_fn(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return refusing(model, x, y) if model.training else refusing(model, x * math.nan, y)

    with pytest.raises(TrainingDiverged, match="at epoch 0, step 3: in the validation loss, loc must be fin"):
        run(layer(), loss_fn, validation=line(5))


# --- validation and callbacks ----------------------------------------------------------------------------


def noisy_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return squared_error(model, x + 0.1 * torch.randn_like(x), y)


@pytest.mark.parametrize("loader", [False, True], ids=["tensors", "loader"])
def test_validation_and_callbacks_leave_the_training_alone(loader):
    """They may draw random numbers, and the model is in evaluation mode while they do."""
    data = {"data": DataLoader(TensorDataset(*line()), 8, shuffle=True), "batch_size": None} if loader else {}
    alone, watched_one, modes = layer(), layer(), []

    def callback(history: History) -> None:
        torch.rand(3)
        modes.append((watched_one.training, len(history.loss), len(history.seconds), len(history.validation)))

    run(alone, noisy_error, **data)
    history = run(watched_one, noisy_error, validation=line(5), callback=callback, **data)
    assert same(state(alone), state(watched_one))
    assert modes == [(False, 1, 1, 1), (False, 2, 2, 2), (False, 3, 3, 3)]
    assert len(history.validation) == 3 and history.validation[-1] < history.validation[0]


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_validation_is_the_mean_loss_after_each_epoch(micro_batch_size):
    model, held_out, expected = layer(), line(11), []
    history = run(
        model,
        validation=tuple(part.double().numpy() for part in held_out),
        callback=lambda _: expected.append(squared_error(model, *held_out).item()),
        micro_batch_size=micro_batch_size,
    )
    assert history.validation == pytest.approx(expected, rel=1e-6)


def test_validation_meets_the_same_noise_each_time():
    model = layer()
    history = run(model, noisy_error, validation=line(5), optimizer=sgd(model, lr=0.0))
    assert history.validation == [history.validation[0]] * 3


def test_callback_that_fails_fails_the_run_and_its_epoch_is_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, identity="squared error")

    def callback(history: History) -> None:
        if len(history.loss) == 2:
            raise StopError

    with pytest.raises(StopError):
        run(layer(), callback=callback, checkpoints=checkpoints)
    assert checkpoints.latest().stem == "step-000000008"
    assert len(run(layer(), checkpoints=checkpoints).loss) == 3


# --- schedules -------------------------------------------------------------------------------------------


def test_fit_steps_the_schedule_after_each_step_of_its_optimizer():
    model, rates = layer(), []
    optimizer = sgd(model, lr=1.0)
    scheduler = ExponentialLR(optimizer, 0.5)
    look = watched(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    run(model, look, scheduler=scheduler, num_epochs=2, batch_size=20, micro_batch_size=10)
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]  # 32 examples: 10 + 10, 10 + 2


def test_fit_rejects_what_belongs_to_another_optimizer():
    model = layer()
    scheduler = ExponentialLR(sgd(model), 0.5)
    with pytest.raises(ValueError, match="scheduler is bound to another optimizer"):
        run(model, optimizer=sgd(model), scheduler=scheduler)
    for own in ({"scheduler": scheduler}, {"optimizer": sgd(model)}):
        with pytest.raises(ValueError, match=r"give learning_rate .* or an optimizer of your own, not both"):
            run(model, learning_rate=0.1, **own)


# --- the same result in other ways -----------------------------------------------------------------------

# the optimal scale belongs to a batch, not to its examples
LOSSES = {name: make for name, make in LIKELIHOODS.items() if name != "gaussian-optimal"}
every_likelihood = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)


def vae(make: type[Likelihood], dtype: torch.dtype = F32) -> tuple[VAE, tuple[Tensor, Tensor]]:
    x, noise = data(50, 12).to(dtype), normal(50, 3).to(dtype)
    torch.manual_seed(0)
    return mlp_vae(12, 3, hidden_dims=(8,), likelihood=make()).to(dtype), (x, noise)


def trained(make: type[Likelihood], dtype: torch.dtype = F32, **arguments) -> tuple[VAE, History]:
    model, batch = vae(make, dtype)
    arguments = {"num_epochs": 2, "batch_size": 16, "learning_rate": 0.01, **arguments}
    return model, fit(model, given_noise, batch, **arguments)


@every_likelihood
@pytest.mark.parametrize("micro_batch_size", [1, 5, 16, 100])
def test_fit_in_slices_is_fit_in_one_piece(make, micro_batch_size):
    """Exactly, but for rounding; 50 examples in batches of 16 leave an uneven batch of 2."""
    whole, first = trained(make, F64)
    sliced, second = trained(make, F64, micro_batch_size=micro_batch_size)
    assert second.loss == pytest.approx(first.loss, rel=1e-9)
    torch.testing.assert_close(state(sliced), state(whole), rtol=1e-8, atol=1e-8)


def test_fit_in_slices_differs_for_a_loss_that_is_no_mean_over_examples():
    """The optimal scale belongs to the batch it was computed from, as the documentation warns."""
    _, whole = trained(LIKELIHOODS["gaussian-optimal"], F64)
    _, sliced = trained(LIKELIHOODS["gaussian-optimal"], F64, micro_batch_size=4)
    assert abs(sliced.loss[0] - whole.loss[0]) > 1e-3


@every_likelihood
def test_fit_in_bf16_stays_near_float32(make):
    """Products have 8 bits, so the loss moves by under 2 %; weights and the loss itself stay in float32."""
    exact, first = trained(make)
    rounded, second = trained(make, precision="bf16")
    assert second.loss == pytest.approx(first.loss, rel=0.02, abs=0.05)
    assert second.loss != first.loss
    assert all(weight.dtype == F32 for weight in state(rounded))
    assert not same(state(exact), state(rounded))


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, F32), (F64, F64)], ids=str)
def test_fit_weights_slices_in_float32_at_least(dtype, expected):
    """A loss that is itself bf16 is widened before it is divided."""
    loss = BatchLoss(layer(), lambda model, x: x.to(dtype).mean(), "bf16", "cpu")
    assert loss(torch.ones(3)).dtype == expected


@every_likelihood
def test_loss_under_autocast_is_that_of_the_rounded_outputs(make):
    """Likelihood and KL add no rounding of their own: given the network's bf16 outputs they are float32."""
    model, (x, noise) = vae(make)
    with torch.autocast("cpu", torch.bfloat16):
        loc, log_scale = model.encode(x)
        params = model.decode(loc + log_scale.exp() * noise)
        nll, kl = model.likelihood.nll(x, params), kl_standard_normal(loc, log_scale)
    assert params.dtype == loc.dtype == torch.bfloat16
    exact_nll = make().double().nll(x.double(), params.double()).float()
    exact_kl = kl_standard_normal(loc.double(), log_scale.double()).float()
    torch.testing.assert_close(nll, exact_nll, rtol=1e-5, atol=1e-5)  # in float32
    torch.testing.assert_close(kl, exact_kl, rtol=1e-5, atol=1e-6)


needs_compiler = pytest.mark.skipif(compiler_problem() is not None, reason=str(compiler_problem()))


@pytest.mark.long
@needs_compiler
def test_compiled_losses_are_the_eager_ones_for_every_likelihood():
    """In one compilation, values and gradients."""
    likelihoods = [make() for make in LOSSES.values()]
    x, codes = data(50, 12).float(), normal(2, 50, 3).float().requires_grad_()
    outputs = [normal(50, 12 * each.num_params).float().requires_grad_() for each in likelihoods]

    def losses() -> Tensor:
        nll = [each.nll(x, params) for each, params in zip(likelihoods, outputs, strict=True)]
        return torch.stack([*nll, kl_standard_normal(*codes)]).mean(1)

    eager, compiled = losses(), torch.compile(losses, dynamic=False)()
    leaves = [codes, *outputs, *(scale for each in likelihoods for scale in each.parameters())]
    expected, gradients = (torch.autograd.grad(values.sum(), leaves) for values in (eager, compiled))
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@needs_compiler
def test_fit_compiled_is_fit_eager():
    """Incomplete batches included, which run eagerly."""
    eager, first = trained(BernoulliLikelihood)
    compiled, second = trained(BernoulliLikelihood, compile=True)
    assert second.loss == pytest.approx(first.loss, rel=1e-5)
    torch.testing.assert_close(state(compiled), state(eager), rtol=1e-3, atol=1e-4)


@needs_compiler
def test_fit_compiled_still_checks_the_values_of_the_first_batch():
    x = torch.full((8, 4), 255.0)
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
        run(mlp_vae(4, 2), negative_elbo, data=x, compile=True)


@pytest.mark.parametrize(("compile", "mode"), [(True, None), ("reduce-overhead", "reduce-overhead")])
def test_fit_compiles_one_shape_only_in_the_mode_given(compile, mode, monkeypatch):
    """What is not a full slice goes past the compiler: the last batch, its slices, and the first batch."""
    calls = []

    def recording(module: nn.Module, *, mode: str | None, **_: object):
        def fast(*batch: Tensor) -> Tensor:
            calls.append((mode, len(batch[0])))
            return module(*batch)

        return fast

    monkeypatch.setattr("torch.compile", recording)
    monkeypatch.setattr("vaecourse.training.step.compiler_problem", lambda: None)
    run(layer(), compile=compile, num_epochs=1, batch_size=10, micro_batch_size=4)
    # 32 = 10 + 10 + 10 + 2 examples, 10 = 4 + 4 + 2; the first batch is not among them
    assert calls == [(mode, 4)] * 4


def test_fit_says_that_a_compiler_is_missing(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = r"needs a C\+\+ compiler on the CPU and no-such-compiler is not there"
    with pytest.raises(RuntimeError, match=message):
        run(layer(), compile=True)


@pytest.mark.gpu
@every_likelihood
def test_fit_vae_agrees_on_cpu_and_gpu(make, accelerator):
    on_cpu, first = trained(make)
    on_device, second = trained(make, device=accelerator)
    assert second.loss == pytest.approx(first.loss, rel=1e-4)
    torch.testing.assert_close(state(on_device.cpu()), state(on_cpu), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_fit_never_waits_for_the_gpu_inside_an_epoch(accelerator):
    if accelerator.type != "cuda":
        pytest.skip("only CUDA reports synchronisations")
    model, data = vae(BernoulliLikelihood)

    def alert(model: VAE, *batch: Tensor) -> Tensor:
        torch.cuda.set_sync_debug_mode("error" if len(batch[0]) == 16 else "default")  # 2 in the last batch
        return given_noise(model, *batch)

    try:
        fit(model, alert, data, num_epochs=1, batch_size=16, device=accelerator)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_fit_stops_before_a_bad_step_on_the_gpu(accelerator):
    model = layer()
    with pytest.raises(TrainingDiverged, match="at epoch 1, step 2: the loss is nan"):
        run(model, spoiled_at(4 + 2, "nan"), device=accelerator)
    assert all(weight.isfinite().all() for weight in state(model))
