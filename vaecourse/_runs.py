"""Training runs in folders: a configuration, what training made of it, and what the model is then worth."""

import contextlib
import dataclasses
import functools
import io
import json
import logging
import math
import os
import platform
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from vaecourse import __version__
from vaecourse.checkpoints import CheckpointError, Checkpoints, load_checkpoint
from vaecourse.datasets import binarize, digits, mnist, to_unit_interval
from vaecourse.evaluation import active_units, evaluate_elbo, nll_estimate
from vaecourse.likelihoods import (
    BernoulliLikelihood,
    ContinuousBernoulliLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    Likelihood,
)
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import negative_elbo
from vaecourse.plotting import plot_curves, use_style
from vaecourse.training import History, choose_device, compiler_problem, fit

CHOICES = {
    "data": ("mnist", "digits"),
    "likelihood": ("bernoulli", "continuous-bernoulli", "gaussian", "laplace"),
    "schedule": ("constant", "cosine", "one-cycle"),
    "precision": ("float32", "bf16"),
}
LOWEST = {
    "latent_dim": 1,
    "num_epochs": 1,
    "batch_size": 1,
    "micro_batch_size": 1,
    "num_processes": 1,
    "seed": 0,
}
DATA_DIM = {"mnist": 784, "digits": 64}
NUM_TRAINING_DIGITS = 1500  # of 1797; the rest, by other writers, is the test set
TEST_BITS_SEED = 20160901  # black-and-white test images are the same for every run and every seed
UNIT = "nats per image"
VERSIONS = {
    "vaecourse": __version__,
    "torch": torch.__version__,
    "python": platform.python_version(),
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a training run.

    The device, torch.compile and the rhythm of checkpoints are left out: they change the last
    bits of a result and its speed, not what is estimated.

    Parameters
    ----------
    data : {"mnist", "digits"}
        Images, scaled to [0, 1].
    likelihood : {"bernoulli", "continuous-bernoulli", "gaussian", "laplace"}
        What the decoder's output means.
    scale : float or {"learned", "optimal", "per_pixel"}
        Standard deviation of a Gaussian, or scale b of a Laplace distribution (a number only).
    latent_dim : int
        Number of latents K.
    hidden_dims : sequence of int
        Hidden dimensions of the encoder; the decoder's are the reverse.
    binarize : bool
        Whether each grey level is the probability of a black pixel, drawn anew at every presentation.
    beta : float
        Weight of the KL term, not negative.
    num_epochs, batch_size : int
        Passes over the training images, and images per optimiser step.
    learning_rate : float
        Of Adam; the highest one if there is a schedule.
    schedule : {"constant", "cosine", "one-cycle"}
        Course of the learning rate over the whole run.
    precision : {"float32", "bf16"}
        Of matrix products.
    micro_batch_size : int, optional
        Images in memory at a time; whole batches if left out.
    num_processes : int
        Processes that share each batch.
    seed : int
        Of the weights, the order of the images, and all noise.

    Raises
    ------
    ValueError
        If a value is of the wrong type or out of range, or if `scale` belongs to another likelihood.

    Examples
    --------
    >>> config = RunConfig(data="digits", likelihood="gaussian", scale="learned", hidden_dims=[32])
    >>> RunConfig.from_json(config.to_json()) == config
    True
    """

    data: str = "mnist"
    likelihood: str = "bernoulli"
    scale: float | str = 1.0
    latent_dim: int = 20
    hidden_dims: Sequence[int] = (400,)
    binarize: bool = False
    beta: float = 1.0
    num_epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    schedule: str = "constant"
    precision: str = "float32"
    micro_batch_size: int | None = None
    num_processes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run, and bring equal values to equal form."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, lowest in LOWEST.items():
            value = getattr(self, name)
            if not (_is_count(value, lowest) or (name == "micro_batch_size" and value is None)):
                raise ValueError(f"{name} must be a whole number from {lowest} on, got {value!r}")
        dims = self.hidden_dims
        if not isinstance(dims, list | tuple) or not all(_is_count(dim, 1) for dim in dims):
            raise ValueError(f"hidden_dims must be whole numbers from 1 on, got {dims!r}")
        if not isinstance(self.binarize, bool):
            raise ValueError(f"binarize must be true or false, got {self.binarize!r}")
        for name, is_allowed in (("beta", self.beta == 0), ("learning_rate", False)):
            value = getattr(self, name)
            if not (is_allowed or (_is_number(value) and value > 0)):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        object.__setattr__(self, "hidden_dims", tuple(dims))
        _make_likelihood(self)

    def to_json(self) -> str:
        """The configuration as JSON text, one entry a line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """Read what `to_json` returned; missing entries stand for their defaults, others are refused."""
        entries = json.loads(text)
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(entries, dict):
            raise ValueError(f"a configuration is a JSON object, got {type(entries).__name__}")
        if unknown := [name for name in entries if name not in known]:
            raise ValueError(f"a run has no setting {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**entries)

    @property
    def caveat(self) -> str | None:
        """What a reader of the results must know, if anything."""
        if self.likelihood == "bernoulli" and not self.binarize:
            return (
                "a Bernoulli likelihood on grey levels is a cross-entropy, not a log-likelihood "
                "of the images: see --binarize"
            )
        return None


def build_model(config: RunConfig) -> VAE:
    """The untrained model of a run, on the CPU; torch's global random state stays as it is.

    Parameters
    ----------
    config : RunConfig
        Its seed decides the weights.

    Returns
    -------
    VAE
        Encoder and decoder are mirror-image perceptrons.

    Examples
    --------
    >>> build_model(RunConfig(data="digits", latent_dim=3)).encode(torch.zeros(5, 64))[0].shape
    torch.Size([5, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return mlp_vae(
            DATA_DIM[config.data],
            config.latent_dim,
            hidden_dims=config.hidden_dims,
            likelihood=_make_likelihood(config),
        )


def _load_images(data: str, split: str) -> Tensor:
    """Images in [0, 1], shape (N, D); the first 1,500 digits are for training, the others for testing."""
    if data == "mnist":
        return to_unit_interval(mnist("train" if split == "train" else "test")[0])
    x = to_unit_interval(digits()[0], max_level=16)
    return x[:NUM_TRAINING_DIGITS] if split == "train" else x[NUM_TRAINING_DIGITS:]


def _load_test_images(config: RunConfig, num_images: int | None = None) -> Tensor:
    """The first test images as the model is judged on: bits, where it learns from bits."""
    x = _load_images(config.data, "test")
    if config.binarize:
        x = binarize(x, generator=torch.Generator().manual_seed(TEST_BITS_SEED))
    return x[:num_images]


def is_finished(config: RunConfig, folder: Path) -> bool:
    """Whether a folder holds the complete result of this very configuration.

    Parameters
    ----------
    config : RunConfig
        What is to be run.
    folder : Path
        The run folder; it need not exist.

    Returns
    -------
    bool
        False if nothing or less was trained there.

    Raises
    ------
    ValueError
        If the folder belongs to another configuration.  More epochs than before are accepted
        where the learning rate is constant.

    Examples
    --------
    >>> is_finished(RunConfig(), Path("no_such_folder"))
    False
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

    Under ``torchrun`` each process takes its share of every batch, and the first alone writes.

    Parameters
    ----------
    config : RunConfig
        What to train.
    folder : Path
        Receives ``config.json``, ``checkpoints/``, and at the end ``history.json`` and ``loss.png``.
    device : str
        "auto", "cpu", "cuda", "cuda:1", "mps".
    compile : bool
        Whether to compile the loss.
    checkpoint_every : int, optional
        Optimiser steps between checkpoints; one at the end of each epoch if left out.
    keep : int
        Checkpoints kept, at least 2.
    progress : bool
        Whether to show a progress bar, if the output is a terminal.

    Returns
    -------
    dict
        The content of ``history.json``: ``loss`` (mean of nll + beta * kl over each epoch), ``seconds``
        and ``images_per_second`` per epoch, and under ``test`` the terms of the ELBO of the test
        images.  All in nats per image.

    Raises
    ------
    ValueError
        If the folder holds another run, or the device or a number is out of range.
    CheckpointError
        If a checkpoint cannot be written or read.
    FloatingPointError
        If the loss or a gradient stops being finite.

    Examples
    --------
    >>> import tempfile
    >>> config = RunConfig(data="digits", hidden_dims=[8], latent_dim=2, num_epochs=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     len(train(config, Path(folder), device="cpu", progress=False)["loss"])
    1
    """
    checkpoints = Checkpoints(folder / "checkpoints", every=checkpoint_every, keep=keep)
    if is_finished(config, folder):
        return _read_history(folder)
    with _process_group(device, config.num_processes) as (place, rank):
        if compile and place.type == "cpu" and (problem := compiler_problem()) is not None:
            raise ValueError(problem)
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "config.json", config.to_json().encode())
        model, x = build_model(config), _load_images(config.data, "train")
        fitted = _fit(config, model, x, place, checkpoints, compile=compile, progress=progress)
    history = _describe(config, model, fitted, num_images=len(x), device=place)
    if rank == 0:
        _write(folder / "loss.png", _draw_loss(history, config))
        _write(folder / "history.json", _to_json(history))  # last: with it, the run counts as finished
    return history


def evaluate(
    folder: Path, *, num_samples: int = 500, num_images: int = 1000, device: str = "auto", seed: int = 0
) -> dict[str, Any]:
    """Judge the model of a run, as its newest checkpoint has it, on test images.

    Parameters
    ----------
    folder : Path
        A run folder; receives ``evaluation.json``.
    num_samples : int
        Importance samples per image, at least 2.
    num_images : int
        How many of the first test images, at least 2; all if there are fewer.
    device : str
        "auto", "cpu", "cuda", "cuda:1", "mps".
    seed : int
        Of the draws of z.

    Returns
    -------
    dict
        The content of ``evaluation.json``; ELBO, its terms, and the importance-weighted estimate of the
        negative log-likelihood with its Monte Carlo standard error, in nats per image.

    Raises
    ------
    ValueError
        If the folder is no run folder or nothing has been trained there, or a number is out of range.
    CheckpointError
        If the newest checkpoint is damaged or does not belong to the configuration.

    Examples
    --------
    >>> evaluate(Path("no_such_folder"))
    Traceback (most recent call last):
    ValueError: no_such_folder is no run folder (no config.json in it): vaecourse train makes one
    """
    if num_images < 2 or num_samples < 2:
        raise ValueError(f"num_images and num_samples must be at least 2, got {num_images} and {num_samples}")
    config, place = _read_config(folder), choose_device(device)
    model, checkpoint = _load_model(folder, config)
    model.to(place)
    x = _load_test_images(config, num_images).to(place)
    generator = torch.Generator(place).manual_seed(seed)
    estimate = nll_estimate(model, x, num_samples=num_samples, generator=generator)
    units = active_units(model, x)
    result = _test_terms(model, x, seed) | {
        "importance_weighted_nll": estimate.nats,
        "standard_error": estimate.standard_error,
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
    }
    _write(folder / "evaluation.json", _to_json(result))
    return result


def launched_processes() -> int | None:
    """Number of processes that torchrun has started, this one among them; None without torchrun."""
    if dist.is_available() and dist.is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    return None


def launch(num_processes: int, max_restarts: int, arguments: Sequence[str]) -> int:
    """Run the command line in many processes of this machine, as torchrun does, and return its exit status.

    Parameters
    ----------
    num_processes : int
        How many.
    max_restarts : int
        How often all of them are started again after one has failed.
    arguments : sequence of str
        What follows ``vaecourse`` on the command line.

    Returns
    -------
    int
        0, or the status of the process that failed first.

    Raises
    ------
    ValueError
        If `max_restarts` is negative.

    Examples
    --------
    >>> launch(2, -1, ["train", "runs/digits"])
    Traceback (most recent call last):
    ValueError: max_restarts must not be negative, got -1
    """
    if max_restarts < 0:
        raise ValueError(f"max_restarts must not be negative, got {max_restarts}")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    # else processes that start again on one machine often cannot agree on a port:
    # https://github.com/pytorch/pytorch/issues/135712
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    options = ["--standalone", f"--nproc-per-node={num_processes}", f"--max-restarts={max_restarts}"]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    logging.disable(logging.ERROR)  # the processes say themselves what is wrong
    try:
        torchrun([*options, "-m", "vaecourse", *arguments])
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status > 0 else 128 - status
    except SignalException as stop:  # the processes had it too, and have saved
        return 128 + stop.sigval
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


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
            functools.partial(_binarized_loss if config.binarize else negative_elbo, beta=config.beta),
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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value < 2**63


def _make_likelihood(config: RunConfig) -> Likelihood:
    if not (isinstance(config.scale, str) or _is_number(config.scale)):
        raise ValueError(f"scale must be a number or a word, got {config.scale!r}")
    if config.likelihood == "gaussian":
        return GaussianLikelihood(config.scale)  # type: ignore[arg-type]  # checked there
    if config.likelihood == "laplace":
        if isinstance(config.scale, str):
            raise ValueError(f"scale of a laplace likelihood must be a number, got {config.scale!r}")
        return LaplaceLikelihood(config.scale)
    if config.scale != 1:
        raise ValueError(f"a {config.likelihood} likelihood has no scale, got {config.scale!r}")
    return BernoulliLikelihood() if config.likelihood == "bernoulli" else ContinuousBernoulliLikelihood()


def _binarized_loss(model: VAE, x: Tensor, *, beta: float) -> Tensor:
    return negative_elbo(model, torch.bernoulli(x), beta=beta)


def _make_scheduler(config: RunConfig, model: nn.Module, num_steps: int) -> LRScheduler | None:
    if config.schedule == "constant":
        return None
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=num_steps)
    return OneCycleLR(optimizer, max_lr=config.learning_rate, total_steps=num_steps)


@contextlib.contextmanager
def _process_group(device: str, num_processes: int) -> Iterator[tuple[torch.device, int]]:
    """Device and rank of this process; under torchrun, inside a process group."""
    launched = launched_processes()
    if launched is None:
        if num_processes != 1:
            raise ValueError(f"{num_processes} processes are started by --processes or by torchrun")
        yield choose_device(device), 0
        return
    if num_processes != launched:
        raise ValueError(f"torchrun started {launched} processes, not {num_processes}")
    place = choose_device(device)
    if place.type == "cuda":
        place = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(place)
    elif device == "auto":
        place = torch.device("cpu")  # what gloo can handle
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timedelta(minutes=5))
    try:
        yield place, dist.get_rank()
    except RuntimeError as error:
        if not (isinstance(error, dist.DistBackendError) or "gloo" in str(error)):
            raise
        reason = str(error).partition("\n")[0]
        raise ConnectionError(f"process {dist.get_rank()} lost the others: {reason}") from error
    finally:
        dist.destroy_process_group()


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


def _describe(
    config: RunConfig, model: VAE, fitted: History, *, num_images: int, device: torch.device
) -> dict[str, Any]:
    """What goes into history.json."""
    return {
        "loss": fitted.loss,
        "seconds": fitted.seconds,
        "images_per_second": [num_images / seconds for seconds in fitted.seconds],
        "test": _test_terms(model, _load_test_images(config).to(device)),
        "unit": UNIT,
        "caveat": config.caveat,
        "num_images": num_images,
        "device": str(device),
        "versions": VERSIONS,
    }


def _loss_figure(history: dict[str, Any], config: RunConfig) -> Figure:
    loss = history["loss"]
    verb = "falls" if loss[-1] < loss[0] else "goes"
    use_style()
    figure = Figure()
    ax = figure.subplots()
    label = f"{config.data}, {config.likelihood}, {config.latent_dim} latents"
    plot_curves(range(1, len(loss) + 1), {label: loss}, mark_minimum=True, ax=ax)
    ax.set_title(f"The training loss {verb} from {loss[0]:.4g} to {loss[-1]:.4g} nats in {len(loss)} epochs")
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(f"nll + {'' if config.beta == 1 else f'{config.beta:g} × '}kl ({UNIT})")
    return figure


def _draw_loss(history: dict[str, Any], config: RunConfig) -> bytes:
    """The loss per epoch as a PNG file; matplotlib's settings stay as they are."""
    file = io.BytesIO()
    with mpl.rc_context():
        _loss_figure(history, config).savefig(file, format="png", dpi=150)
    return file.getvalue()


def _to_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    """Write a file that is, at any moment, the old one or the new one."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_bytes(content)
    aside.replace(path)
