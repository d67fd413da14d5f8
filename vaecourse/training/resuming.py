"""What lets a stopped run go on as if it had not stopped: its whole state, and an orderly end."""

import contextlib
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from vaecourse.training.checkpoints import CheckpointError, Checkpoints, load_checkpoint
from vaecourse.training.processes import from_all
from vaecourse.training.step import Run


class Saver:
    """Writes a run's state into a folder of checkpoints, and takes it from there.

    Parameters
    ----------
    run : Run
        As it is before its first step.
    checkpoints : Checkpoints
        The folder.
    settings : dict of str to str
        What must be the same for a checkpoint to belong to this run, besides its identity, model and
        optimiser.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints, settings: dict[str, str]) -> None:
        if checkpoints.identity is None:
            raise ValueError(
                "checkpoints need an identity, words that say what this run is, its loss above all, so that "
                "another run is told apart: Checkpoints(folder, identity='negative ELBO, beta 1')"
            )
        self.run, self.checkpoints = run, checkpoints
        self.settings = {
            "identity": checkpoints.identity,
            **_texts(run),
            **settings,
            **_optimizer_settings(run),
        }
        self.last: Path | None = None

    def is_due(self) -> bool:
        """Whether a checkpoint falls on the step just taken, inside an epoch."""
        return self.checkpoints.every is not None and self.run.step % self.checkpoints.every == 0

    def save(self, seconds: float) -> None:
        """Write a checkpoint, by the first process alone."""
        run = self.run
        run.guard.report()
        state = {
            "settings": self.settings,
            "machine": _machine(run),
            "position": {"step": run.step, "batch": run.batch, "seconds": seconds},
            "history": vars(run.history),
            "totals": from_all(run.total, run.device),
            "random_states": from_all(torch.get_rng_state(), run.device),
            "device_random_states": from_all(_device_random_state(run.device), run.device),
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scheduler": None if run.scheduler is None else run.scheduler.state_dict(),
        }
        if run.rank == 0:
            self.last = self.checkpoints.save(run.step, state)

    def resume(self, num_epochs: int) -> float:
        """Put the run where its newest checkpoint was written, and return the epoch's seconds until then."""
        path = self.checkpoints.latest()
        if path is None:
            return 0.0
        state = load_checkpoint(path)
        if "settings" not in state:
            raise CheckpointError(
                f"{path} holds no state of a run, only {', '.join(state)}: choose another folder"
            )
        self._compare(path, state, num_epochs)
        run, position = self.run, state["position"]
        try:
            run.model.load_state_dict(state["model"])
            run.optimizer.load_state_dict(state["optimizer"])
            if run.scheduler is not None:
                run.scheduler.load_state_dict(state["scheduler"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path} does not fit this model or optimiser: {' '.join(str(error).split())}"
            ) from error
        vars(run.history).update(state["history"])
        run.step, run.batch = position["step"], position["batch"]
        run.total = state["totals"][run.rank].to(run.device)
        torch.set_rng_state(state["random_states"][run.rank])
        _set_device_random_state(run.device, state["device_random_states"][run.rank])
        self.last = path
        return float(position["seconds"])

    def _compare(self, path: Path, state: dict[str, Any], num_epochs: int) -> None:
        saved, now = state["settings"], self.settings
        if unsaid := [name for name in ("identity", "model", "parameters", "schedule") if name not in saved]:
            warnings.warn(
                f"{path} was written by an older version, which did not save {', '.join(unsaid)} of a run: "
                "make sure that they are those of this run",
                stacklevel=2,
            )
            now = {name: value for name, value in now.items() if name not in unsaid}
        if different := [
            difference(name, saved.get(name, "None"), now.get(name, "None"))
            for name in sorted({*saved, *now})
            if saved.get(name, "None") != now.get(name, "None")
        ]:
            is_used = self.run.scheduler is not None and self.run.scheduler.last_epoch > 0
            way = "make optimiser and schedule anew, these have taken steps, or " if is_used else ""
            raise CheckpointError(
                f"{path} belongs to another run ({'; '.join(different)}): {way}choose another folder"
            )
        num_done = len(state["history"]["loss"])
        if num_done > num_epochs or (num_done == num_epochs and state["position"]["batch"] > 0):
            raise CheckpointError(
                f"{path} has trained for more than {num_epochs} epochs: choose another folder"
            )
        machine = _machine(self.run)
        if different := [
            f"{name} was {state['machine'][name]}, is {machine[name]}"
            for name in machine
            if state["machine"][name] != machine[name]
        ]:
            warnings.warn(
                f"resuming {path} under other conditions ({'; '.join(different)}): "
                "results will not agree to the last bit with an uninterrupted run",
                stacklevel=2,
            )


class Signals:
    """SIGINT or SIGTERM, held back until the run is at a safe point.

    Attributes
    ----------
    received : int or None
        Number of the signal.
    """

    received: int | None = None

    def deliver(self) -> None:
        """Let a signal that was held back do what it does."""
        if self.received is not None:
            signal.raise_signal(self.received)

    def received_anywhere(self, run: Run) -> bool:
        """Whether any process received one: all must stop at the same step."""
        flag = torch.tensor(float(self.received is not None))
        return any(own.item() for own in from_all(flag, run.device))


@contextlib.contextmanager
def deferred_signals(is_active: bool) -> Iterator[Signals]:
    """Hold back the first SIGINT or SIGTERM; a second one acts at once, and an ignored one stays ignored."""
    signals = Signals()
    if not is_active or threading.current_thread() is not threading.main_thread():
        yield signals
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    previous = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def hold_back(number: int, frame: FrameType | None) -> None:
        put_back()
        signals.received = number

    for number in previous:
        signal.signal(number, hold_back)
    try:
        yield signals
    finally:
        put_back()


def difference(name: str, saved: str, now: str) -> str:
    """What differs between two texts, of which the lines in common are left out."""
    before, after = ([line.strip().rstrip(",") for line in text.splitlines()] for text in (saved, now))
    was = _some([line for line in before if line not in after])
    is_now = _some([line for line in after if line not in before])
    return (
        f"{name} was {was}, is {is_now}" if was != is_now else f"{name} has the same lines in another order"
    )


def _some(lines: list[str]) -> str:
    """The first of these lines, in one."""
    more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
    return ", ".join(lines[:4]) + more if lines else "without that"


def _texts(run: Run) -> dict[str, str]:
    """Model, parameters and schedule as texts of many lines, without addresses in memory."""
    place_of = {
        id(p): f"number {position} of parameter group {number}"
        for number, group in enumerate(run.optimizer.param_groups)
        for position, p in enumerate(group["params"])
    }
    parameters = [
        f"{name}: {str(p.dtype).removeprefix('torch.')} {tuple(p.shape)}, "
        + (place_of[id(p)] if p.requires_grad and id(p) in place_of else "not trained")
        for name, p in run.model.named_parameters()
    ]
    schedule = {} if run.scheduler is None else run.scheduler.state_dict()
    lines = "\n".join(f"{name!r}: {value!r}" for name, value in schedule.items())
    passing = r"'(_is_initial|_get_lr_called_within_step)': \w+(, |\n|$)?"  # not in every version of torch
    texts = {
        "model": repr(run.model),
        "parameters": "\n".join(parameters),
        "schedule": re.sub(passing, "", lines),
    }
    return {name: re.sub(" at 0x[0-9a-f]+", "", text) for name, text in texts.items()}


def _optimizer_settings(run: Run) -> dict[str, str]:
    """Classes and hyperparameters, as they are before the first step."""
    settings = {
        "optimizer": _name(run.optimizer),
        "scheduler": _name(run.scheduler),
        "processes": str(run.world_size),
    }
    for position, group in enumerate(run.optimizer.param_groups):
        for name, value in group.items():
            if name != "params":
                number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
                settings[f"{name} of parameter group {position}"] = repr(number)
    return settings


def _name(thing: object) -> str:
    """Name of a class, with its module if it is not torch's."""
    kind = type(thing)
    is_known = kind.__module__.startswith("torch.") or thing is None
    return kind.__name__ if is_known else f"{kind.__module__}.{kind.__qualname__}"


def _machine(run: Run) -> dict[str, str]:
    """What the last bits of a result depend on besides the settings."""
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type
    return {
        "torch": torch.__version__,
        "device": device,
        "threads": str(torch.get_num_threads()),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _device_random_state(device: torch.device) -> Tensor:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else torch.empty(0, dtype=torch.uint8)


def _set_device_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state)
