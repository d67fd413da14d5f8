"""Training runs in folders: a configuration, what training made of it, and what the model is then worth."""

import contextlib
import dataclasses
import functools
import io
import json
import math
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from vaecourse import __version__, likelihoods
from vaecourse._files import replace_file
from vaecourse.cli.configuration import RunConfig
from vaecourse.datasets import binarize, digits, mnist, to_unit_interval
from vaecourse.evaluation import active_units, evaluate_elbo, nll_estimate
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import importance_weighted_bound, negative_elbo
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

NUM_TRAINING_DIGITS = 1500  # of 1797; the rest, by other writers, is the test set
TEST_BITS_SEED = 20160901  # black-and-white test images are the same for every run and every seed
DATA_DIM = {"mnist": 784, "digits": 64}
UNIT = "nats per image"
VERSIONS = {"vaecourse": __version__, "torch": torch.__version__, "python": platform.python_version()}


def load_images(data: str, split: str = "train") -> Tensor:
    """Images in [0, 1], shape (N, D); the first 1,500 digits are for training, the others for testing."""
    if data == "mnist":
        return to_unit_interval(mnist("train" if split == "train" else "test")[0])
    x = to_unit_interval(digits()[0], max_level=16)
    return x[:NUM_TRAINING_DIGITS] if split == "train" else x[NUM_TRAINING_DIGITS:]


def _load_test_images(config: RunConfig, num_images: int | None = None) -> Tensor:
    """The first test images as the model is judged on: bits, where it learns from bits."""
    x = load_images(config.data, "test")
    if config.binarize:
        x = binarize(x, generator=torch.Generator().manual_seed(TEST_BITS_SEED))
    return x[:num_images]


def build_model(config: RunConfig) -> VAE:
    """The untrained model of a run, on the CPU, whose weights the seed of `config` decides.

    Encoder and decoder are mirror-image perceptrons; torch's global random state stays as it is.
    """
    kinds: dict[str, Callable[..., likelihoods.Likelihood]] = {
        "bernoulli": likelihoods.BernoulliLikelihood,
        "continuous-bernoulli": likelihoods.ContinuousBernoulliLikelihood,
        "gaussian": likelihoods.GaussianLikelihood,
        "laplace": likelihoods.LaplaceLikelihood,
    }
    likelihood = kinds[config.likelihood](*([] if "bernoulli" in config.likelihood else [config.scale]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return mlp_vae(
            DATA_DIM[config.data],
            config.latent_dim,
            hidden_dims=config.hidden_dims,
            likelihood=likelihood,
            activation={"relu": nn.ReLU, "tanh": nn.Tanh}[config.activation],
        )


def is_finished(config: RunConfig, folder: Path) -> bool:
    """Whether a folder holds the complete result of this very configuration.

    False if nothing or less was trained there; `ValueError` if the folder belongs to another
    configuration.  More epochs than before are accepted where the learning rate is constant.
    """
    if not (folder / "config.json").exists():
        return False
    saved, wanted = dataclasses.asdict(_read_config(folder)), dataclasses.asdict(config)
    different = [
        f"{name} was {saved[name]}, is {wanted[name]}" for name in saved if saved[name] != wanted[name]
    ]
    saved["num_epochs"] = max(saved["num_epochs"], wanted["num_epochs"])
    if different and not (saved == wanted and config.schedule == "constant"):
        raise ValueError(
            f"{folder} holds a run with another configuration ({'; '.join(different)}): repeat its options, "
            "or choose another folder (only the epochs may grow, with a constant schedule)"
        )
    with contextlib.suppress(OSError, ValueError, KeyError):  # missing or damaged: it is written again
        return len(_read_history(folder)["loss"]) == config.num_epochs
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
) -> dict[str, Any]:
    """Train a model, or go on with a run that was stopped, and leave everything about it in a folder.

    Under ``torchrun`` each process takes its share of every batch, and the first alone writes.  The folder
    receives ``config.json``, ``checkpoints/``, and at the end ``history.json``, whose content is returned
    (losses and the terms of the test images' ELBO in nats per image), and ``loss.png``.
    """
    checkpoints = Checkpoints(folder / "checkpoints", every=checkpoint_every, keep=keep)
    if is_finished(config, folder):
        return _read_history(folder)
    with process_group(device, config.num_processes) as (place, rank):
        if compile and place.type == "cpu" and (problem := compiler_problem()) is not None:
            raise ValueError(problem)
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / "config.json", config.to_json().encode())
        model, x = build_model(config), load_images(config.data, "train")
        if config.pixel_bias:
            _start_at_pixel_means(model, x)
        fitted = _fit(config, model, x, place, checkpoints, compile=compile, progress=progress)
    history = {
        "loss": fitted.loss,
        "seconds": fitted.seconds,
        "images_per_second": [len(x) / seconds for seconds in fitted.seconds],
        "test": _test_terms(model, _load_test_images(config).to(place)),
        "unit": UNIT,
        "caveat": config.caveat,
        "num_images": len(x),
        "device": str(place),
        "versions": VERSIONS,
    }
    if rank == 0:
        replace_file(folder / "loss.png", _draw_loss(history, config))
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

    The result, which ``evaluation.json`` receives too, holds the ELBO, its terms, and the
    importance-weighted estimate of the negative log-likelihood, in nats per image, with its Monte Carlo
    error, that of the choice of images, and its value for each image.
    """
    if num_images < 2 or num_samples < 2:
        raise ValueError(f"num_images and num_samples must be at least 2, got {num_images} and {num_samples}")
    config, place = _read_config(folder), choose_device(device)
    model, checkpoint = _load_model(folder, config)
    model.to(place)
    x = _load_test_images(config, num_images).to(place)
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
        "device": str(place),
        "versions": VERSIONS,
        "per_image": [round(nats, 3) for nats in estimate.per_image.tolist()],
    }
    replace_file(folder / "evaluation.json", _to_json(result))
    return result


def _fit(
    config: RunConfig,
    model: VAE,
    x: Tensor,
    device: torch.device,
    checkpoints: Checkpoints,
    *,
    compile: bool,
    progress: bool,
) -> History:
    num_steps = config.num_epochs * math.ceil(len(x) / config.batch_size)
    scheduler = _make_scheduler(config, model, num_steps)
    with _divergence_named(checkpoints):
        return fit(
            model,
            functools.partial(_loss, config),
            x,
            num_epochs=config.num_epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate if scheduler is None else None,
            scheduler=scheduler,
            device=device,
            precision="bf16" if config.precision == "bf16" else "float32",
            compile=compile,
            micro_batch_size=config.micro_batch_size,
            checkpoints=checkpoints,
            seed=config.seed,
            progress=progress,
        )


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


def _load_model(folder: Path, config: RunConfig) -> tuple[VAE, Path]:
    """The model as the newest checkpoint has it, and the path of that."""
    model, path = build_model(config), Checkpoints(folder / "checkpoints").latest()
    if path is None:
        raise ValueError(f"{folder} holds no checkpoint yet: train it first, with vaecourse train")
    state = load_checkpoint(path)
    try:
        model.load_state_dict(state["model"], strict=True)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit {folder / 'config.json'}: {reason}") from error
    return model.eval(), path


def _loss(config: RunConfig, model: VAE, x: Tensor) -> Tensor:
    """What a run minimises, in nats per image."""
    if config.binarize:
        x = torch.bernoulli(x)
    if config.importance_samples == 1:
        return negative_elbo(model, x, beta=config.beta)
    return -importance_weighted_bound(model, x, num_samples=config.importance_samples).mean()


def _start_at_pixel_means(model: VAE, x: Tensor) -> None:
    """Let the decoder begin with each pixel's frequency of ink, no pixel certain (Burda et al.)."""
    *_, last = (layer for layer in model.decoder.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        last.bias.copy_(torch.logit(x.mean(0), eps=1e-3))


def _make_scheduler(config: RunConfig, model: nn.Module, num_steps: int) -> LRScheduler | None:
    if config.schedule == "constant":
        return None
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=num_steps)
    return OneCycleLR(optimizer, max_lr=config.learning_rate, total_steps=num_steps)


@contextlib.contextmanager
def _divergence_named(checkpoints: Checkpoints) -> Iterator[None]:
    """Densities refuse values that are not finite: in the middle of a run, that is a divergence."""
    try:
        yield
    except ValueError as error:
        notes = getattr(error, "__notes__", [])
        if not any(note.startswith("raised by loss_fn") for note in notes):
            raise
        reason = "; ".join([str(error), *notes, f"the last checkpoint is {checkpoints.latest()}"])
        raise FloatingPointError(f"training diverged: {reason}") from error


def _test_terms(model: VAE, x: Tensor, seed: int = 0) -> dict[str, Any]:
    terms = evaluate_elbo(model, x, generator=torch.Generator(x.device).manual_seed(seed))
    nll, kl = terms.nll.mean().item(), terms.kl.mean().item()
    return {"elbo": -nll - kl, "nll": nll, "kl": kl, "num_images": len(x)}


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
