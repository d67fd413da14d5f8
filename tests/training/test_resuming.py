"""A run that is stopped, by whatever, and started again ends with the bits of a run that was not."""

import hashlib
import math
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vaecourse.models import mlp_vae
from vaecourse.objectives import negative_elbo
from vaecourse.training import CheckpointError, Checkpoints, History, fit, load_checkpoint, save_checkpoint
from vaecourse.training.step import Guard

NUM_EXAMPLES, BATCH_SIZE, NUM_EPOCHS = 22, 4, 3
STEPS_PER_EPOCH = 6  # the last with two examples
NUM_STEPS = STEPS_PER_EPOCH * NUM_EPOCHS

# A server that has torch loaded and forks: a child starts in milliseconds.
FORKS = multiprocessing.get_context("forkserver") if os.name == "posix" else None


def data() -> Tensor:
    return torch.linspace(0, 1, NUM_EXAMPLES * 4).reshape(NUM_EXAMPLES, 4)


def fingerprint(model: nn.Module) -> str:
    sha = hashlib.sha256()
    for tensor in model.state_dict().values():
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()


class StopError(Exception):
    pass


def run(checkpoints=None, *, stop_at=None, act=None, **arguments) -> tuple[str, History]:
    """Train a small VAE, noise included; at the given call of the loss do something or fall over."""
    torch.manual_seed(7)
    model = mlp_vae(4, 2, hidden_dims=(3,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    calls = iter(range(10**6))

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        if next(calls) == stop_at:
            if act is None:
                raise StopError
            act()
        return negative_elbo(model, x)

    arguments = {"num_epochs": NUM_EPOCHS, "batch_size": BATCH_SIZE, "data": data(), **arguments}
    history = fit(model, loss_fn, scheduler=scheduler, checkpoints=checkpoints, **arguments)
    return fingerprint(model), history


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[str, History]:
    return run()


# --- the state is complete -------------------------------------------------------------------------------


def test_checkpoints_do_not_change_the_run(uninterrupted, tmp_path):
    final, history = run(Checkpoints(tmp_path, every=1))
    assert (final, history.loss) == (uninterrupted[0], uninterrupted[1].loss)


@pytest.mark.parametrize("every", [None, 1, 4])
def test_run_stopped_at_any_step_resumes_to_the_same_bits(every, uninterrupted, tmp_path):
    for step in range(NUM_STEPS):
        checkpoints = Checkpoints(tmp_path / str(step), every=every)
        with pytest.raises(StopError):
            run(checkpoints, stop_at=step)
        lost = step - int(checkpoints.latest().stem.removeprefix("step-")) if checkpoints.latest() else step
        assert lost < min(every or STEPS_PER_EPOCH, STEPS_PER_EPOCH)
        final, history = run(checkpoints)
        assert final == uninterrupted[0]
        assert history.loss == uninterrupted[1].loss
        assert len(history.seconds) == NUM_EPOCHS


def test_run_stopped_many_times_resumes_to_the_same_bits(uninterrupted, tmp_path):
    checkpoints = Checkpoints(tmp_path, every=2)
    for _ in range(NUM_STEPS // 2 - 1):  # each attempt gets one checkpoint further
        with pytest.raises(StopError):
            run(checkpoints, stop_at=2)
    assert run(checkpoints)[0] == uninterrupted[0]


@pytest.mark.parametrize("part", ["random_states", "optimizer", "scheduler", "position", "totals"])
def test_each_part_of_the_state_is_needed(part, uninterrupted, tmp_path):
    """With one part of another step put into the file, something comes out differently."""
    checkpoints = Checkpoints(tmp_path, every=1, keep=20)
    with pytest.raises(StopError):
        run(checkpoints, stop_at=8)
    earlier, latest = checkpoints.paths()[-2:]
    state = load_checkpoint(latest)
    state[part] = load_checkpoint(earlier)[part]
    save_checkpoint(latest, state)
    final, history = run(checkpoints)
    assert (final, history.loss) != (uninterrupted[0], uninterrupted[1].loss)


def test_finished_run_is_not_repeated(uninterrupted, tmp_path):
    run(Checkpoints(tmp_path))
    final, history = run(Checkpoints(tmp_path), stop_at=0)
    assert (final, history.loss) == (uninterrupted[0], uninterrupted[1].loss)


def test_finished_run_can_go_on_for_more_epochs(uninterrupted, tmp_path):
    run(Checkpoints(tmp_path), num_epochs=1)
    assert run(Checkpoints(tmp_path))[0] == uninterrupted[0]


def test_resumed_model_ends_on_weights_that_it_did_not_start_with(tmp_path):
    """The checkpoint decides, not the model that is passed."""
    run(Checkpoints(tmp_path))
    model = mlp_vae(4, 2, hidden_dims=(3,))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    fit(
        model, negative_elbo, data(), num_epochs=NUM_EPOCHS, batch_size=BATCH_SIZE,
        scheduler=scheduler, checkpoints=Checkpoints(tmp_path),
    )  # fmt: skip
    assert fingerprint(model) == run(Checkpoints(tmp_path))[0]


def test_only_the_last_few_checkpoints_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=5, keep=2)
    run(checkpoints)
    assert [path.stem for path in checkpoints.paths()] == ["step-000000015", "step-000000018"]


# --- another run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 5}, r"belongs to another run \(batch_size was 4, is 5\): choose another folder"),
        ({"seed": 1}, r"\(seed was 0, is 1\)"),
        ({"precision": "bf16"}, r"\(precision was float32, is bf16\)"),
        ({"micro_batch_size": 2}, r"\(micro_batch_size was None, is 2\)"),
        ({"data": data() / 2}, r"\(data was [0-9a-f]{16}, is [0-9a-f]{16}\)"),
        ({"data": data().double()}, r"\(data was [0-9a-f]{16}, is [0-9a-f]{16}\)"),
        ({"num_epochs": 1}, "has trained for more than 1 epochs"),
    ],
    ids=["batch_size", "seed", "precision", "micro_batch_size", "data", "dtype", "num_epochs"],
)
def test_checkpoint_of_another_run_is_refused(arguments, message, tmp_path):
    run(Checkpoints(tmp_path), num_epochs=2)
    with pytest.raises(CheckpointError, match=message):
        run(Checkpoints(tmp_path), **arguments)


def train_plainly(checkpoints: Checkpoints, model: nn.Module, **arguments) -> History:
    return fit(model, negative_elbo, data(), num_epochs=1, batch_size=4, checkpoints=checkpoints, **arguments)


def test_checkpoint_of_another_optimizer_is_refused(tmp_path):
    model = mlp_vae(4, 2, hidden_dims=(3,))
    train_plainly(Checkpoints(tmp_path), model, learning_rate=0.1)
    with pytest.raises(CheckpointError, match=r"lr of parameter group 0 was 0\.1, is 0\.2"):
        train_plainly(Checkpoints(tmp_path), model, learning_rate=0.2)
    with pytest.raises(CheckpointError, match="optimizer was Adam, is SGD"):
        train_plainly(Checkpoints(tmp_path), model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_checkpoint_of_another_model_is_refused(tmp_path):
    train_plainly(Checkpoints(tmp_path), mlp_vae(4, 2, hidden_dims=(3,)))
    with pytest.raises(CheckpointError, match=r"does not fit this model .*size mismatch"):
        train_plainly(Checkpoints(tmp_path), mlp_vae(4, 2, hidden_dims=(5,)))


def test_damaged_checkpoint_is_named_and_the_one_before_serves(uninterrupted, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    run(checkpoints)
    newest = checkpoints.latest()
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{newest.name} is damaged.*delete it"):
        run(checkpoints)
    newest.unlink()
    assert run(checkpoints)[0] == uninterrupted[0]


def test_other_conditions_are_said_aloud(tmp_path):
    run(Checkpoints(tmp_path), num_epochs=1)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.warns(
            UserWarning, match=rf"threads was {before}, is {before + 1}.*not agree to the last bit"
        ):
            run(Checkpoints(tmp_path))
    finally:
        torch.set_num_threads(before)


class LateGuard(Guard):
    """Looks only when it is asked, as on an accelerator."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.looks_later = True


@pytest.mark.parametrize("guard", [Guard, LateGuard])
@pytest.mark.parametrize("every", [None, 1])
def test_bad_step_names_the_last_checkpoint_and_never_enters_one(every, guard, tmp_path, monkeypatch):
    monkeypatch.setattr("vaecourse.training.step.Guard", guard)
    checkpoints = Checkpoints(tmp_path, every=every)

    def spoiled(model: nn.Module, x: Tensor, count=iter(range(100))) -> Tensor:  # noqa: B008
        return negative_elbo(model, x) * (math.nan if next(count) == 8 else 1)

    with pytest.raises(FloatingPointError, match="the loss is nan at epoch 1, step 2") as caught:
        fit(mlp_vae(4, 2), spoiled, data(), num_epochs=3, batch_size=4, checkpoints=checkpoints)
    step = 8 if every else 6
    assert caught.value.__notes__ == [f"the last checkpoint is {tmp_path / f'step-{step:09}.ckpt'}"]
    for path in checkpoints.paths():
        assert all(weight.isfinite().all() for weight in load_checkpoint(path)["model"].values())


def test_disk_that_fills_up_stops_the_run_and_keeps_the_checkpoint_before(
    uninterrupted, tmp_path, monkeypatch
):
    checkpoints = Checkpoints(tmp_path)

    def fill_disk() -> None:
        def no_space(descriptor: int) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr("os.fsync", no_space)

    with pytest.raises(CheckpointError, match=r"No space left on device.*earlier checkpoints are untouched"):
        run(checkpoints, stop_at=8, act=fill_disk)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000006.ckpt"]
    assert run(checkpoints)[0] == uninterrupted[0]


# --- signals ---------------------------------------------------------------------------------------------


@pytest.fixture
def usual_signals():
    """Ctrl-C as in a terminal: a shell's background jobs start with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_signal_ends_the_run_after_the_step_in_hand_with_a_checkpoint(number, uninterrupted, tmp_path):
    def terminate(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(Checkpoints(tmp_path), stop_at=8, act=lambda: signal.raise_signal(number))
        assert signal.getsignal(signal.SIGTERM) is terminate
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert Checkpoints(tmp_path).latest().stem == "step-000000009"
    assert run(Checkpoints(tmp_path))[0] == uninterrupted[0]


@pytest.mark.usefixtures("usual_signals")
def test_second_signal_acts_at_once(tmp_path):
    def impatient() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(Checkpoints(tmp_path), stop_at=8, act=impatient)
    assert Checkpoints(tmp_path).latest().stem == "step-000000006"


@pytest.mark.usefixtures("usual_signals")
def test_ignored_signal_stays_ignored(uninterrupted, tmp_path):
    """A shell's background job starts with Ctrl-C ignored: it is meant for the job in front."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    weights = run(Checkpoints(tmp_path), stop_at=8, act=lambda: signal.raise_signal(signal.SIGINT))[0]
    assert weights == uninterrupted[0]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("usual_signals")
def test_signal_acts_at_once_where_nothing_could_be_saved():
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=8, act=lambda: signal.raise_signal(signal.SIGINT))


# --- kill -9 ---------------------------------------------------------------------------------------------


def train_in_child(folder: str, steps_begun) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(7)
    model = mlp_vae(16, 4, hidden_dims=(32,))

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        steps_begun.value += 1
        return negative_elbo(model, x)

    x = torch.linspace(0, 1, 400 * 16).reshape(400, 16)
    checkpoints = Checkpoints(Path(folder, "checkpoints"), every=KILL_INTERVAL)
    fit(model, loss_fn, x, num_epochs=3, batch_size=8, checkpoints=checkpoints)
    Path(folder, "final.txt").write_text(fingerprint(model))


KILL_INTERVAL = 7


def kill_until_done(folder: Path, longest: float, chance: random.Random) -> int:
    """Start the run again and again, killing it at a random moment, until it ends; return the kills."""
    kills = 0
    while not (folder / "final.txt").exists():
        newest = Checkpoints(folder / "checkpoints").latest()
        start = int(newest.stem.removeprefix("step-")) if newest else 0
        steps_begun = FORKS.Value("i", 0)
        child = FORKS.Process(target=train_in_child, args=(str(folder), steps_begun))
        child.start()
        child.join(chance.uniform(0, longest))
        child.kill()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        kills += 1
        newest = Checkpoints(folder / "checkpoints").latest()
        if newest is None:
            assert steps_begun.value <= KILL_INTERVAL + 1
        else:
            load_checkpoint(newest)  # the newest is always whole
            reached = int(newest.stem.removeprefix("step-"))
            assert start + steps_begun.value - reached <= KILL_INTERVAL + 1
    return kills


def resumes_after_kills(tmp_path: Path, least: int) -> None:
    FORKS.set_forkserver_preload([__name__, "torch._dynamo"])  # an optimiser loads it late
    (tmp_path / "reference").mkdir()
    for _ in range(2):  # the first also starts the server
        (tmp_path / "reference" / "final.txt").unlink(missing_ok=True)
        for path in Checkpoints(tmp_path / "reference" / "checkpoints").paths():
            path.unlink()
        start, steps_begun = time.monotonic(), FORKS.Value("i", 0)
        child = FORKS.Process(target=train_in_child, args=(str(tmp_path / "reference"), steps_begun))
        child.start()
        child.join()
        assert child.exitcode == 0
        longest = time.monotonic() - start
    reference = (tmp_path / "reference" / "final.txt").read_text()
    kills, attempt, chance = 0, 0, random.Random(0)
    while kills < least:
        folder = tmp_path / str(attempt)
        folder.mkdir()
        kills += kill_until_done(folder, longest, chance)
        assert (folder / "final.txt").read_text() == reference
        attempt += 1


@pytest.mark.skipif(FORKS is None, reason="needs a system that can fork and kill")
def test_run_killed_at_twenty_random_moments_ends_with_the_same_bits(tmp_path):
    resumes_after_kills(tmp_path, least=20)


@pytest.mark.slow
@pytest.mark.skipif(FORKS is None, reason="needs a system that can fork and kill")
def test_run_killed_at_hundred_random_moments_ends_with_the_same_bits(tmp_path):
    resumes_after_kills(tmp_path, least=100)
