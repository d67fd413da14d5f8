"""A run that is stopped, by whatever, and started again ends with the bits of a run that was not."""

import errno
import itertools
import math
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from tests.training.examples import FORKS, LateGuard, StopError, crash, fingerprint, start
from vaecourse.likelihoods import GaussianLikelihood, LaplaceLikelihood
from vaecourse.models import mlp_vae
from vaecourse.objectives import negative_elbo
from vaecourse.training import (
    CheckpointError,
    Checkpoints,
    TrainingDiverged,
    fit,
    load_checkpoint,
    loop,
    save_checkpoint,
)
from vaecourse.training.step import Guard

NUM_EXAMPLES, BATCH_SIZE, NUM_EPOCHS = 14, 4, 3
STEPS_PER_EPOCH = 4  # the last with two examples
NUM_STEPS = STEPS_PER_EPOCH * NUM_EPOCHS

Outcome = tuple[str, list[float], int]  # the weights' fingerprint, the losses, how many epochs were timed


def data() -> Tensor:
    return torch.linspace(0, 1, NUM_EXAMPLES * 4).reshape(NUM_EXAMPLES, 4)


def saved_in(folder: Path, identity: str = "negative ELBO", **options) -> Checkpoints:
    return Checkpoints(folder, identity=identity, **options)


def small_vae() -> nn.Module:
    torch.manual_seed(7)
    return mlp_vae(4, 2, hidden_dims=(3,))


def run(checkpoints=None, *, stop_at=None, act=crash, model=None, make=AdamW, lr=0.01, **more) -> Outcome:
    """Train a small VAE, noise included; at the given call of the loss do something or fall over."""
    model = model or small_vae()
    optimizer = make(model.parameters(), lr=lr)
    calls = itertools.count()

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        if next(calls) == stop_at:
            act()
        return negative_elbo(model, x)

    more = {"num_epochs": NUM_EPOCHS, "batch_size": BATCH_SIZE, "data": data(), **more}
    scheduler = CosineAnnealingLR(optimizer, 50)
    history = fit(model, loss_fn, scheduler=scheduler, checkpoints=checkpoints, **more)
    return fingerprint(model), history.loss, len(history.seconds)


def stop(checkpoints: Checkpoints, step: int) -> None:
    with pytest.raises(StopError):
        run(checkpoints, stop_at=step)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def uninterrupted() -> Outcome:
    return run()


# --- the state is complete -------------------------------------------------------------------------------


def test_seconds_of_an_epoch_include_those_before_a_break_and_not_the_break(monkeypatch, tmp_path):
    now = 1000
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now))

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        nonlocal now
        if now == 1000 + STEPS_PER_EPOCH + 1:  # in the second epoch
            raise StopError
        now += 1
        return negative_elbo(model, x)

    options = {"num_epochs": 3, "batch_size": BATCH_SIZE, "checkpoints": saved_in(tmp_path, every=1)}
    with pytest.raises(StopError):
        fit(small_vae(), loss_fn, data(), **options)
    now += 500
    assert fit(small_vae(), loss_fn, data(), **options).seconds == [STEPS_PER_EPOCH] * 3


def test_checkpoints_do_not_change_the_run(uninterrupted, tmp_path):
    assert run(saved_in(tmp_path, every=1)) == uninterrupted


@pytest.mark.parametrize("every", [None, 3, pytest.param(1, marks=pytest.mark.long)])
def test_run_stopped_at_any_step_resumes_to_the_same_bits(every, uninterrupted, tmp_path):
    for step in range(NUM_STEPS):
        checkpoints = saved_in(tmp_path / str(step), every=every)
        stop(checkpoints, step)
        lost = step - int(checkpoints.latest().stem.removeprefix("step-")) if checkpoints.latest() else step
        assert lost < min(every or STEPS_PER_EPOCH, STEPS_PER_EPOCH)
        assert run(checkpoints) == uninterrupted
    assert uninterrupted[2] == NUM_EPOCHS


def test_run_stopped_many_times_resumes_to_the_same_bits(uninterrupted, tmp_path):
    checkpoints = saved_in(tmp_path, every=2)
    for _ in range(NUM_STEPS // 2 - 1):  # each attempt gets one checkpoint further
        stop(checkpoints, 2)
    assert run(checkpoints) == uninterrupted


@pytest.mark.parametrize("part", ["random_states", "optimizer", "scheduler", "position", "totals"])
def test_each_part_of_the_state_is_needed(part, uninterrupted, tmp_path):
    """With one part of another step put into the file, something comes out differently."""
    checkpoints = saved_in(tmp_path, every=1, keep=20)
    stop(checkpoints, 6)
    earlier, latest = checkpoints.paths()[-2:]
    save_checkpoint(latest, load_checkpoint(latest) | {part: load_checkpoint(earlier)[part]})
    assert run(checkpoints)[:2] != uninterrupted[:2]


def test_finished_run_is_not_repeated(uninterrupted, tmp_path):
    run(saved_in(tmp_path))
    assert run(saved_in(tmp_path), stop_at=0) == uninterrupted


def test_finished_run_can_go_on_for_more_epochs(uninterrupted, tmp_path):
    run(saved_in(tmp_path), num_epochs=1)
    assert run(saved_in(tmp_path)) == uninterrupted


def test_resumed_model_ends_on_weights_that_it_did_not_start_with(uninterrupted, tmp_path):
    """The checkpoint decides, not the model that is passed."""
    run(saved_in(tmp_path))
    model = small_vae()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert run(saved_in(tmp_path), model=model) == uninterrupted


def test_only_the_last_few_checkpoints_stay(tmp_path):
    run(saved_in(tmp_path, every=5, keep=2))
    assert names(tmp_path) == ["step-000000010.ckpt", "step-000000012.ckpt"]


# --- another run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 5}, r"belongs to another run \(batch_size was 4, is 5\): choose another folder"),
        ({"seed": 1}, r"\(seed was 0, is 1\)"),
        ({"precision": "bf16"}, r"\(precision was float32, is bf16\)"),
        ({"micro_batch_size": 2}, r"\(micro_batch_size was None, is 2\)"),
        ({"data": data() / 2}, r"\(data was [0-9a-f]{16}, is [0-9a-f]{16}\)"),
        ({"num_epochs": 1}, "has trained for more than 1 epochs"),
        ({"validation": data()[:2]}, r"\(validation was None, is [0-9a-f]{16}\)"),
        (
            {"model": mlp_vae(4, 2, hidden_dims=(5,))},
            r"model was \(0\): Linear\(in_features=4, out_features=3, bias=True\).*is .*out_features=5",
        ),
        (
            {"model": mlp_vae(4, 2, hidden_dims=(3,), activation=nn.Tanh)},
            r"\(model was \(1\): ReLU\(\), \(1\): ReLU\(\), is \(1\): Tanh\(\), \(1\): Tanh\(\)\): choose",
        ),
        (
            {"model": mlp_vae(4, 2, hidden_dims=(3,), likelihood=GaussianLikelihood(0.1))},
            r"model was .*BernoulliLikelihood\(\), is .*GaussianLikelihood\(scale=0.1\)",
        ),
        ({"lr": 0.02}, r"lr of parameter group 0 was 0\.01, is 0\.02"),
        ({"make": SGD}, "optimizer was AdamW, is SGD"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_checkpoint_of_another_run_is_refused(arguments, message, tmp_path):
    run(saved_in(tmp_path), num_epochs=2)
    with pytest.raises(CheckpointError, match=message):
        run(saved_in(tmp_path), **arguments)


@pytest.mark.parametrize(
    ("identity", "likelihood", "message"),
    [
        (
            "negative ELBO, beta 4",
            GaussianLikelihood(0.1),
            "identity was negative ELBO, is negative ELBO, beta 4",
        ),
        (
            "negative ELBO",
            GaussianLikelihood(1.0),
            r"model was \(likelihood\): GaussianLikelihood\(scale=0.1\), is .*\(scale=1.0\)",
        ),
        (
            "negative ELBO",
            LaplaceLikelihood(0.1),
            r"scale=0.1\), is \(likelihood\): LaplaceLikelihood\(scale=0.1",
        ),
        (
            "negative ELBO",
            GaussianLikelihood("per_pixel", min_log_scale=-4.0),
            "is .*scale='per_pixel', min_log_scale=-4.0",
        ),
    ],
    ids=["other-loss", "other-scale", "other-likelihood", "other-way"],
)
@pytest.mark.parametrize("num_epochs", [1, 2], ids=["to go on", "finished"])
def test_run_that_differs_in_what_is_fixed_gets_neither_history_nor_weights(
    identity, likelihood, message, num_epochs, tmp_path
):
    def vae(likelihood):
        torch.manual_seed(7)
        return mlp_vae(4, 2, hidden_dims=(3,), likelihood=likelihood)

    run(saved_in(tmp_path), model=vae(GaussianLikelihood(0.1)), num_epochs=1)
    other = vae(likelihood)
    before = fingerprint(other)
    with pytest.raises(
        CheckpointError, match=rf"belongs to another run \(.*{message}.*choose another folder"
    ):
        run(saved_in(tmp_path, identity), model=other, num_epochs=num_epochs)
    assert fingerprint(other) == before
    assert len(run(saved_in(tmp_path), model=vae(GaussianLikelihood(0.1)), num_epochs=2)[1]) == 2


def decoder_only(model: nn.Module) -> nn.Module:
    model.encoder.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cosine": CosineAnnealingLR, "num_steps": 60}, r"\(schedule was 'T_max': 50, is 'T_max': 60\)"),
        (
            {"frozen": True},
            r"encoder.network.0.weight: float32 \(3, 4\), number 0 of .* is .*\(3, 4\), not trained",
        ),
        (
            {"part": "decoder"},
            r"is encoder.network.0.weight: float32 \(3, 4\), not trained, .*encoder.network.2.bias",
        ),
    ],
    ids=["other-schedule", "frozen", "optimiser-of-a-part"],
)
def test_run_that_trains_otherwise_is_refused(change, message, tmp_path):
    def once(num_steps=50, frozen=False, part=None, **_) -> None:
        model = decoder_only(small_vae()) if frozen else small_vae()
        optimizer = AdamW((getattr(model, part) if part else model).parameters(), lr=0.01)
        schedule = CosineAnnealingLR(optimizer, num_steps)
        options = {"num_epochs": 1, "batch_size": 4, "scheduler": schedule}
        fit(model, negative_elbo, data(), checkpoints=saved_in(tmp_path), **options)

    once()
    with pytest.raises(CheckpointError, match=message):
        once(**change)
    once()


class OwnSGD(SGD):
    """Another rule under another name."""


def sgd_in_order(model: nn.Module, step: int = 1, kind=SGD, lr=0.01) -> SGD:
    return kind(list(model.parameters())[::step], lr=lr)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -1}, r"parameters was .*weight: float32 \(4, 4\), number 0 of .* is .*number 3 of "),
        ({"kind": OwnSGD}, r"optimizer was SGD, is \S*test_resuming.OwnSGD"),
        ({"lr": torch.tensor(0.01004)}, r"lr of parameter group 0 was 0\.00999\d*, is 0\.01004\d*"),
    ],
    ids=["other-order", "other-class", "lr-as-a-tensor"],
)
def test_optimiser_that_would_go_on_otherwise_is_refused(change, message, tmp_path):
    def once(**how) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        options = {"num_epochs": 1, "batch_size": 4, "optimizer": sgd_in_order(model, **how)}
        loss_fn = lambda model, x: (model(x) - x).square().mean()  # noqa: E731
        fit(model, loss_fn, data(), checkpoints=saved_in(tmp_path), **options)

    once(lr=torch.tensor(0.01))
    with pytest.raises(CheckpointError, match=message):
        once(**{"lr": torch.tensor(0.01), **change})
    once(lr=torch.tensor(0.01))


def test_refused_checkpoint_leaves_the_model_alone(tmp_path):
    class Shifted(nn.Module):
        """Its text does not tell the size of its parameter."""

        def __init__(self, size: int) -> None:
            super().__init__()
            self.layer, self.shift = nn.Linear(4, 4), nn.Parameter(torch.zeros(size))

    def once(model: nn.Module) -> None:
        loss_fn = lambda model, x: model.layer(x).square().mean() + model.shift.square().sum()  # noqa: E731
        fit(model, loss_fn, data(), num_epochs=1, batch_size=4, checkpoints=saved_in(tmp_path))

    once(Shifted(6))
    model = Shifted(7)
    before = fingerprint(model)
    with pytest.raises(CheckpointError, match=r"shift: float32 \(6,\), number 0 .* is shift: float32 \(7,\)"):
        once(model)
    assert fingerprint(model) == before


def test_schedule_that_has_taken_steps_is_answered_with_the_way_out(tmp_path):
    """As when a notebook's cell is run again, and the one that makes the schedule is not."""
    model = small_vae()
    schedule = CosineAnnealingLR(AdamW(model.parameters(), lr=0.01), 50)
    options = {"num_epochs": 1, "batch_size": 4, "scheduler": schedule, "checkpoints": saved_in(tmp_path)}
    fit(model, negative_elbo, data(), **options)
    with pytest.raises(
        CheckpointError, match="make optimiser and schedule anew, these have taken steps, or choose"
    ):
        fit(model, negative_elbo, data(), **options)


def test_layers_in_another_order_are_another_model(tmp_path):
    def once(*layers: nn.Module) -> None:
        model = nn.Sequential(*(nn.Sequential(*part) for part in layers))
        loss_fn = lambda model, x: model(x).square().mean()  # noqa: E731
        fit(model, loss_fn, data(), num_epochs=1, batch_size=4, checkpoints=saved_in(tmp_path))

    once([nn.Linear(4, 4)], [nn.Linear(4, 4), nn.ReLU()])
    with pytest.raises(CheckpointError, match="model has the same lines in another order"):
        once([nn.Linear(4, 4), nn.ReLU()], [nn.Linear(4, 4)])


def test_long_identity_is_answered_with_the_lines_that_differ(tmp_path):
    run(saved_in(tmp_path, '{\n  "beta": 1.0,\n  "scale": 0.1\n}'), num_epochs=1)
    with pytest.raises(CheckpointError, match=r'\(identity was "beta": 1.0, is "beta": 4.0\): choose'):
        run(saved_in(tmp_path, '{\n  "beta": 4.0,\n  "scale": 0.1\n}'))
    with pytest.raises(CheckpointError, match=r'\(identity was "beta": 1.0, is without that\): choose'):
        run(saved_in(tmp_path, '{\n  "scale": 0.1\n}'))


def test_functions_in_the_text_of_a_model_do_not_make_it_another(uninterrupted, tmp_path):
    """Their addresses change from one program to the next."""

    class Shown(nn.ReLU):
        def extra_repr(self) -> str:
            return f"function={object()}"

    torch.manual_seed(7)
    run(saved_in(tmp_path), model=mlp_vae(4, 2, hidden_dims=(3,), activation=Shown), num_epochs=1)
    model = mlp_vae(4, 2, hidden_dims=(3,), activation=Shown)
    assert run(saved_in(tmp_path), model=model)[1] == uninterrupted[1]


def test_data_of_another_precision_are_the_same_data(uninterrupted, tmp_path):
    """They are brought to the model's precision before anything is compared."""
    run(saved_in(tmp_path), num_epochs=1)
    assert run(saved_in(tmp_path), data=data().double().numpy()) == uninterrupted


def test_checkpoint_of_the_old_format_goes_on_with_a_warning(uninterrupted, tmp_path):
    """Version 0.1.0 wrote neither identity nor model, and no validation."""
    checkpoints = saved_in(tmp_path)
    run(checkpoints, num_epochs=1)
    state = load_checkpoint(checkpoints.latest())
    for name in ("identity", "model", "parameters", "schedule", "validation"):
        del state["settings"][name]
    del state["history"]["validation"]
    save_checkpoint(checkpoints.latest(), state)
    message = (
        "by an older version, which did not save identity, model, parameters, schedule of a run: make sure"
    )
    with pytest.warns(UserWarning, match=message):
        assert run(checkpoints) == uninterrupted
    assert run(checkpoints) == uninterrupted  # what it has written since is of the new format
    save_checkpoint(checkpoints.latest(), state | {"settings": state["settings"] | {"seed": "8"}})
    with pytest.warns(UserWarning, match=message), pytest.raises(CheckpointError, match="seed was 8, is 0"):
        run(checkpoints)


def test_checkpoint_without_a_state_is_refused(tmp_path):
    checkpoints = saved_in(tmp_path)
    checkpoints.save(4, {"model": small_vae().state_dict()})
    with pytest.raises(CheckpointError, match="holds no state of a run, only model: choose another folder"):
        run(checkpoints)


def test_run_with_a_loader_goes_on_at_the_end_of_an_epoch(tmp_path):
    def loader() -> DataLoader:
        return DataLoader(data(), batch_size=BATCH_SIZE, shuffle=True)

    options = {"batch_size": None, "data": loader()}
    through = run(**options)
    checkpoints = saved_in(tmp_path, "digits, shuffled")
    with pytest.raises(StopError):
        run(checkpoints, stop_at=6, **options)
    assert names(tmp_path) == ["step-000000004.ckpt"]
    assert run(checkpoints, batch_size=None, data=loader()) == through
    with pytest.raises(CheckpointError, match=r"data was a DataLoader \(the identity says which data\), is"):
        run(checkpoints)


def test_damaged_checkpoint_is_named_and_the_one_before_serves(uninterrupted, tmp_path):
    checkpoints = saved_in(tmp_path)
    run(checkpoints)
    newest = checkpoints.latest()
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{newest.name} is damaged.*delete it"):
        run(checkpoints)
    newest.unlink()
    assert run(checkpoints) == uninterrupted


def test_other_conditions_are_said_aloud(tmp_path):
    run(saved_in(tmp_path), num_epochs=1)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    message = rf"threads was {before}, is {before + 1}.*not agree to the last bit"
    try:
        with pytest.warns(UserWarning, match=message):
            run(saved_in(tmp_path))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("guard", [Guard, LateGuard])
@pytest.mark.parametrize(("every", "step"), [(None, 4), (1, 6)])
def test_bad_step_names_the_last_checkpoint_and_never_enters_one(every, step, guard, tmp_path, monkeypatch):
    monkeypatch.setattr("vaecourse.training.step.Guard", guard)
    calls, checkpoints = itertools.count(), saved_in(tmp_path, every=every)

    def spoiled(model: nn.Module, x: Tensor) -> Tensor:
        return negative_elbo(model, x) * (math.nan if next(calls) == 6 else 1)

    with pytest.raises(TrainingDiverged, match="at epoch 1, step 2: the loss is nan") as caught:
        fit(small_vae(), spoiled, data(), num_epochs=3, batch_size=4, checkpoints=checkpoints)
    assert caught.value.checkpoint == tmp_path / f"step-{step:09}.ckpt"
    assert str(caught.value).endswith(f"the last checkpoint is {caught.value.checkpoint}")
    for path in checkpoints.paths():
        assert all(weight.isfinite().all() for weight in load_checkpoint(path)["model"].values())


def test_full_disk_stops_the_run_and_keeps_the_checkpoint_before(uninterrupted, tmp_path, monkeypatch):
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match=r"No space left on device.*earlier checkpoints are untouched"):
        run(saved_in(tmp_path), stop_at=6, act=lambda: monkeypatch.setattr("os.fsync", no_space))
    monkeypatch.undo()
    assert names(tmp_path) == ["step-000000004.ckpt"]
    assert run(saved_in(tmp_path)) == uninterrupted


# --- signals ---------------------------------------------------------------------------------------------


@pytest.fixture
def usual_signals():
    """Ctrl-C as in a terminal: a shell's background jobs start with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_signal_ends_the_run_after_the_step_in_hand_with_a_checkpoint(number, uninterrupted, tmp_path):
    def terminate(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(saved_in(tmp_path), stop_at=6, act=lambda: signal.raise_signal(number))
        assert signal.getsignal(signal.SIGTERM) is terminate
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert saved_in(tmp_path).latest().stem == "step-000000007"
    assert run(saved_in(tmp_path)) == uninterrupted


@pytest.mark.usefixtures("usual_signals")
def test_signal_ends_a_run_with_a_loader_at_its_last_epoch(tmp_path):
    """Inside an epoch nothing could be saved from which it might go on."""
    loader = DataLoader(data(), batch_size=BATCH_SIZE)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(saved_in(tmp_path), stop_at=6, act=interrupt, batch_size=None, data=loader)
    assert names(tmp_path) == ["step-000000004.ckpt"] and len(caught.value.history.loss) == 1


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("is_saved", [True, False])
def test_interrupted_run_leaves_its_history_with_the_exception(is_saved, uninterrupted, tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        run(saved_in(tmp_path) if is_saved else None, stop_at=6, act=interrupt)
    assert caught.value.history.loss == uninterrupted[1][:1]


@pytest.mark.usefixtures("usual_signals")
def test_second_signal_acts_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(saved_in(tmp_path), stop_at=6, act=lambda: [interrupt() for _ in range(2)])
    assert saved_in(tmp_path).latest().stem == "step-000000004"


@pytest.mark.usefixtures("usual_signals")
def test_ignored_signal_stays_ignored(uninterrupted, tmp_path):
    """A shell's background job starts with Ctrl-C ignored: it is meant for the job in front."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert run(saved_in(tmp_path), stop_at=6, act=interrupt) == uninterrupted
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("usual_signals")
def test_signal_acts_at_once_where_nothing_could_be_saved():
    after = []
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=6, act=lambda: [interrupt(), after.append("went on")])
    assert after == []


# --- kill -9 ---------------------------------------------------------------------------------------------

KILL_INTERVAL = 7


def train_in_child(folder: Path, steps_begun) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(7)
    model = mlp_vae(16, 4, hidden_dims=(32,))

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        steps_begun.value += 1
        return negative_elbo(model, x)

    x = torch.linspace(0, 1, 400 * 16).reshape(400, 16)
    checkpoints = saved_in(folder / "checkpoints", every=KILL_INTERVAL)
    fit(model, loss_fn, x, num_epochs=3, batch_size=8, checkpoints=checkpoints)
    (folder / "final.txt").write_text(fingerprint(model))


def newest_step(folder: Path) -> int:
    """Of a checkpoint that is whole, as the newest always is."""
    newest = saved_in(folder / "checkpoints").latest()
    return load_checkpoint(newest)["position"]["step"] if newest else 0


def kill_until_done(folder: Path, longest: float, chance: random.Random) -> int:
    """Start the run again and again, killing it at a random moment, until it ends; return the kills."""
    exit_codes = []
    while 0 not in exit_codes:
        # without a lock: a child that is killed while it holds one would leave it locked for ever
        reached, steps_begun = newest_step(folder), FORKS.Value("i", 0, lock=False)
        child = start(train_in_child, folder, steps_begun)
        child.join(chance.uniform(0, longest))
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        assert reached + steps_begun.value - newest_step(folder) <= KILL_INTERVAL + 1
        exit_codes.append(child.exitcode)
    return len(exit_codes) - 1


@pytest.mark.long
@pytest.mark.xdist_group("forks")
@pytest.mark.skipif(FORKS is None, reason="needs a system that can fork and kill")
@pytest.mark.parametrize("least", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_run_killed_at_random_moments_ends_with_the_same_bits(least, tmp_path):
    steps_begun = FORKS.Value("i", 0, lock=False)
    for folder in (tmp_path / "first", tmp_path / "reference"):  # the first also starts the server
        begin = time.monotonic()
        child = start(train_in_child, folder, steps_begun)
        child.join()
        assert child.exitcode == 0
    kills, chance, longest = 0, random.Random(0), (time.monotonic() - begin) / 3  # some five kills a run
    while kills < least:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        kills += kill_until_done(folder, longest, chance)
        assert (folder / "final.txt").read_text() == (tmp_path / "reference" / "final.txt").read_text()
