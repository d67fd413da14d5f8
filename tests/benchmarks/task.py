"""The task that all training benchmarks share, and this package's ways to do it."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tests.benchmarks.ceilings import bf16_problem
from tests.benchmarks.measuring import Settings
from vaecourse.datasets import binarize, mnist, to_unit_interval
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import negative_elbo
from vaecourse.training import compiler_problem, fit

DATA_DIM, HIDDEN_DIM, LATENT_DIM = 784, 400, 20
BATCH_SIZE, LEARNING_RATE = 128, 1e-3

Epochs = Callable[[], list[float]]
"""A contender: it trains for some epochs and returns the seconds of each."""


class Way(NamedTuple):
    """A way of calling `fit`."""

    is_compiled: bool
    precision: Literal["float32", "bf16"]


EAGER, COMPILED = "fit, eager, float32", "fit, compiled, float32"
EAGER_BF16, COMPILED_BF16 = "fit, eager, bf16", "fit, compiled, bf16"
WAYS = {
    EAGER: Way(False, "float32"),
    COMPILED: Way(True, "float32"),
    EAGER_BF16: Way(False, "bf16"),
    COMPILED_BF16: Way(True, "bf16"),
}


def our_problem(name: str, threads: int) -> str | None:
    """Why a way of calling `fit` cannot run here, or is not worth it; None if it can."""
    if WAYS[name].precision == "bf16" and (problem := bf16_problem(threads)):
        return problem
    return compiler_problem() if WAYS[name].is_compiled else None


def our_contenders(x: Tensor, settings: Settings) -> dict[str, Epochs]:
    """Every way of calling `fit` that works here, each with a model of its own, kept from run to run."""
    return {
        name: partial(train_ours, new_vae(), x, num_epochs(settings), way)
        for name, way in WAYS.items()
        if our_problem(name, settings.threads) is None
    }


def train_ours(vae: VAE, x: Tensor, epochs: int, way: Way) -> list[float]:
    """Seconds of each epoch of `fit`."""
    return fit(
        vae,
        negative_elbo,
        x,
        num_epochs=epochs,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        compile=way.is_compiled,
        precision=way.precision,
        progress=False,
    ).seconds


def grey_images(settings: Settings) -> Tensor:
    """MNIST's training images, uint8 (N, 28, 28); the incomplete batch at their end is part of the task."""
    return mnist("train")[0][: settings.choose(60_000, 3 * BATCH_SIZE + 32)]


def binary_images(split: Literal["train", "test"], count: int, seed: int) -> Tensor:
    """One binary draw of the first images of a split, (count, 784)."""
    x = to_unit_interval(mnist(split)[0][:count])
    return binarize(x, generator=torch.Generator().manual_seed(seed))


def num_epochs(settings: Settings) -> int:
    """Epochs of one run; the first does not count."""
    return settings.choose(3, 2)


def new_vae() -> VAE:
    """The 784-400-20 Bernoulli VAE with ReLU, the same weights every time."""
    torch.manual_seed(0)
    return mlp_vae(DATA_DIM, LATENT_DIM, hidden_dims=(HIDDEN_DIM,))


def square_size(settings: Settings) -> int:
    """Rows of the square product whose rate is the ceiling."""
    return settings.choose(2048, 256)
