"""Training runs in folders: a configuration, what training made of it, and what the model is then worth."""

import contextlib
import dataclasses
import functools
import io
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vaecourse import __version__
from vaecourse._files import replace_file
from vaecourse.cli.building import (
    build_model,
    load_images,
    load_test_images,
    loss,
    make_optimizer,
    make_scheduler,
    num_steps,
    start_from_data,
)
from vaecourse.cli.configuration import RunConfig
from vaecourse.evaluation import active_units, evaluate_elbo, nll_estimate
from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.models import VAE
from vaecourse.plotting import plot_curves, use_style
from vaecourse.training import (
    CheckpointError,
    Checkpoints,
    History,
    choose_device,
    compiler_problem,
    fit,
    load_checkpoint,
)
from vaecourse.training.processes import process_group
from vaecourse.training.resuming import difference

UNIT = "nats per image"
VERSIONS = {"vaecourse": __version__, "torch": torch.__version__, "python": platform.python_version()}

Say = Callable[[str], object]


def is_finished(config: RunConfig, folder: Path) -> bool:
    """Whether a folder holds the complete result of this very configuration, its last checkpoint included.

    False if nothing or less was trained there; `ValueError` if the folder belongs to another
    configuration, or holds something else.  More epochs than before are accepted where the learning
    rate is constant, and anything where no epoch and no checkpoint would be lost.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    if not (folder / "config.json").exists():
        _check_new(folder, checkpoints)
        return False
    saved, wanted = dataclasses.asdict(_read_config(folder)), dataclasses.asdict(config)
    different = [
        f"{name} was {saved[name]}, is {wanted[name]}" for name in saved if saved[name] != wanted[name]
    ]
    results = [folder / name for name in ("history.json", "evaluation.json")]
    if different and checkpoints.latest() is None and not any(path.exists() for path in results):
        return False
    saved["num_epochs"] = max(saved["num_epochs"], wanted["num_epochs"])
    if different and not (saved == wanted and config.schedule == "constant"):
        raise ValueError(
            f"{folder} holds a run with another configuration ({'; '.join(different)}): repeat its options, "
            "or choose another folder (only the epochs may grow, with a constant schedule)"
        )
    with contextlib.suppress(
        OSError, ValueError, KeyError, TypeError
    ):  # missing or damaged: it is written again
        history = _read_history(folder)
        if len(history["loss"]) == config.num_epochs and "test" in history:
            newest = checkpoints.latest()
            return newest is not None and _step(_read_state(newest, config), newest) == num_steps(config)
    return False


def train(
    config: RunConfig,
    folder: Path,
    *,
    device: str = "auto",
    compile: bool = False,
    checkpoint_every: int | None = None,
    keep: int = 3,
    progress: bool = True,
    say: Say | None = None,
) -> dict[str, Any]:
    """Train a model, or go on with a run that was stopped, and leave everything about it in a folder.

    Under ``torchrun`` each process takes its share of every batch, and the first alone writes.  The folder
    receives ``config.json``, ``checkpoints/``, after each epoch ``history.json``, whose content is returned
    in the end (losses and the terms of the test images' ELBO in nats per image), and ``loss.png``.
    `say` hears a line an epoch.
    """
    identity = config.identity
    checkpoints = Checkpoints(folder / "checkpoints", identity=identity, every=checkpoint_every, keep=keep)
    if is_finished(config, folder):
        return _read_history(folder)
    with process_group(device, config.num_processes) as (place, rank):
        if compile and place.type == "cpu" and (problem := compiler_problem()) is not None:
            raise ValueError(problem)
        model, x = build_model(config), load_images(config.data, "train")
        start_from_data(config, model, x)
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / "config.json", config.to_json().encode())
        optimizer = make_optimizer(config, model)

        def record(fitted: History) -> None:
            if rank == 0:
                replace_file(folder / "history.json", _to_json(_progress(fitted, len(x), config, place)))
                if say is not None:
                    say(_line(fitted, config))

        fitted = fit(
            model,
            functools.partial(loss, config),
            x,
            num_epochs=config.num_epochs,
            batch_size=config.batch_size,
            optimizer=optimizer,
            scheduler=make_scheduler(config, optimizer),
            callback=record,
            device=place,
            precision="bf16" if config.precision == "bf16" else "float32",
            compile=compile,
            micro_batch_size=config.micro_batch_size,
            checkpoints=checkpoints,
            seed=config.seed,
            progress=progress,
        )
    history = _progress(fitted, len(x), config, place)
    history["test"] = _test_terms(model, load_test_images(config).to(place))
    history["scale"] = _scales(model, x.to(place))
    if rank == 0:
        replace_file(folder / "loss.png", _draw_loss(history, config))
        replace_file(folder / "config.json", config.to_json().encode())
        replace_file(folder / "history.json", _to_json(history))  # last: with it, the run counts as finished
    return history


def evaluate(
    folder: Path,
    *,
    num_samples: int = 500,
    num_images: int = 1000,
    device: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Judge the model of a run, as its newest checkpoint has it, on the first test images.

    The result, which ``evaluation.json`` receives too, says which checkpoint that is, and holds the
    ELBO, its terms, and the importance-weighted estimate of the negative log-likelihood, in nats per
    image, with its Monte Carlo error, that of the choice of images, and its value for each image.
    """
    if num_images < 2 or num_samples < 2:
        raise ValueError(f"num_images and num_samples must be at least 2, got {num_images} and {num_samples}")
    config, place = _read_config(folder), choose_device(device)
    model, checkpoint, step = _load_model(folder, config)
    model.to(place)
    x = load_test_images(config, num_images).to(place)
    generator = torch.Generator(place).manual_seed(seed)
    estimate = nll_estimate(model, x, num_samples=num_samples, generator=generator, progress=progress)
    units = active_units(model, x)
    result = _test_terms(model, x, seed) | {
        "importance_weighted_nll": estimate.nats,
        "standard_error": estimate.standard_error,
        "sampling_error": estimate.sampling_error,
        "num_samples": num_samples,
        "active_units": units.count,
        "active_unit_threshold": units.threshold,
        "latent_dim": config.latent_dim,
        "unit": UNIT,
        "caveat": config.caveat,
        "seed": seed,
        "checkpoint": checkpoint.name,
        "step": step,
        "epochs": step * config.num_epochs // num_steps(config),
        "is_finished": step == num_steps(config),
        "device": str(place),
        "versions": VERSIONS,
        "config": json.loads(config.to_json()),
        "per_image": [round(nats, 3) for nats in estimate.per_image.tolist()],
    }
    replace_file(folder / "evaluation.json", _to_json(result))
    return result


def _check_new(folder: Path, checkpoints: Checkpoints) -> None:
    """Refuse a folder that something else fills."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a run needs a folder")
    if checkpoints.latest() is not None:
        raise ValueError(
            f"{folder} holds checkpoints but no config.json: restore it, or choose another folder"
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder.absolute()} holds other files and no config.json: choose an empty folder")


def _read_state(path: Path, config: RunConfig) -> dict[str, Any]:
    """Content of a checkpoint, which must be of a run with this configuration where it says so."""
    state = load_checkpoint(path)
    identity = state.get("settings", {}).get("identity", config.identity)
    if identity != config.identity:
        what = difference("setting", identity, config.identity)
        raise CheckpointError(
            f"{path} is not of the run that config.json describes ({what}): restore config.json, or choose "
            "another folder"
        )
    return state


def _step(state: dict[str, Any], path: Path) -> int:
    """Optimiser steps done by a checkpoint; where it holds weights only, its name says them."""
    return int(state["position"]["step"] if "position" in state else path.stem.removeprefix("step-"))


def _progress(fitted: History, num_images: int, config: RunConfig, device: torch.device) -> dict[str, Any]:
    """What is known of a run while it lasts."""
    return {
        "loss": fitted.loss,
        "seconds": fitted.seconds,
        "images_per_second": [num_images / seconds for seconds in fitted.seconds],
        "unit": UNIT,
        "caveat": config.caveat,
        "num_images": num_images,
        "device": str(device),
        "versions": VERSIONS,
    }


def _line(fitted: History, config: RunConfig) -> str:
    number, loss = len(fitted.loss), fitted.loss[-1]
    return f"epoch {number} of {config.num_epochs}: loss {loss:.2f} {UNIT}, {fitted.seconds[-1]:.1f} s"


def _read_history(folder: Path) -> dict[str, Any]:
    history: dict[str, Any] = json.loads((folder / "history.json").read_text("utf-8"))
    return history


def _read_config(folder: Path) -> RunConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no run folder (no {path.name} in it): vaecourse train makes one")
    try:
        return RunConfig.from_json(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def _load_model(folder: Path, config: RunConfig) -> tuple[VAE, Path, int]:
    """The model as the newest checkpoint has it, the path of that, and its optimiser steps."""
    model, path = build_model(config), Checkpoints(folder / "checkpoints").latest()
    if path is None:
        raise ValueError(f"{folder} holds no checkpoint: vaecourse train makes one")
    state = _read_state(path, config)
    try:
        model.load_state_dict(state["model"], strict=True)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit {folder / 'config.json'}: {reason}") from error
    return model.eval(), path, _step(state, path)


def _test_terms(model: VAE, x: Tensor, seed: int = 0) -> dict[str, Any]:
    terms = evaluate_elbo(model, x, generator=torch.Generator(x.device).manual_seed(seed))
    nll, kl = terms.nll.mean().item(), terms.kl.mean().item()
    return {"elbo": -nll - kl, "nll": nll, "kl": kl, "num_images": len(x)}


@torch.no_grad()
def _scales(model: VAE, x: Tensor) -> dict[str, float] | None:
    """The shared standard deviation of a Gaussian, and the best one for the errors on these images."""
    likelihood = model.likelihood
    if not isinstance(likelihood, GaussianLikelihood) or likelihood.num_params > 1:
        return None
    generator = torch.Generator(x.device).manual_seed(0)
    errors = [(part - model(part, generator=generator)).square().mean(1) for part in torch.split(x, 1000)]
    return {"sigma": float(likelihood.scale), "best_sigma": torch.cat(errors).mean().sqrt().item()}


def _loss_figure(history: dict[str, Any], config: RunConfig) -> Figure:
    loss = history["loss"]
    verb = "falls" if loss[-1] < loss[0] else "goes"
    use_style()
    ax = (figure := Figure()).subplots()
    label = f"{config.data}, {config.likelihood}, {config.latent_dim} latents"
    plot_curves(range(1, len(loss) + 1), {label: loss}, mark_minimum=True, ax=ax)
    ax.set_title(f"The training loss {verb} from {loss[0]:.4g} to {loss[-1]:.4g} nats in {len(loss)} epochs")
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    weight = "" if config.beta == 1 else f"{config.beta:g} × "
    is_elbo = config.importance_samples == 1
    bound = f"nll + {weight}kl" if is_elbo else f"negative bound of {config.importance_samples} samples"
    ax.set_ylabel(f"{bound} ({UNIT})")
    return figure


def _draw_loss(history: dict[str, Any], config: RunConfig) -> bytes:
    """The loss per epoch as a PNG file; matplotlib's settings stay as they are."""
    file = io.BytesIO()
    with mpl.rc_context():
        _loss_figure(history, config).savefig(file, format="png", dpi=150)
    return file.getvalue()


def _to_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
