"""The task that all training benchmarks share, and this package's ways to do it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tests.benchmarks.ceilings import bf16_problem
from tests.benchmarks.measuring import Settings
from vaecourse.datasets import binarize, mnist, to_unit_interval
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import negative_elbo
from vaecourse.training import History, compiler_problem, fit

DATA_DIM, HIDDEN_DIM, LATENT_DIM = 784, 400, 20
BATCH_SIZE, LEARNING_RATE = 128, 1e-3

Epochs = Callable[[], list[float]]
"""A contender: it trains for some epochs and returns the seconds of each."""


class Way(NamedTuple):
    """A way of calling `fit`."""

    is_compiled: bool
    precision: Literal["float32", "bf16"]


COMPILED, COMPILED_BF16 = "fit, compiled, float32", "fit, compiled, bf16"
WAYS = {
    "fit, eager, float32": Way(False, "float32"),
    COMPILED: Way(True, "float32"),
    "fit, eager, bf16": Way(False, "bf16"),
    COMPILED_BF16: Way(True, "bf16"),
}


def train(vae: VAE, x: Tensor, num_epochs: int, batch_size: int = BATCH_SIZE, **options: Any) -> History:
    """Train with `fit`, which is given further options and shows no progress."""
    sizes = {"num_epochs": num_epochs, "batch_size": batch_size, "learning_rate": LEARNING_RATE}
    return fit(vae, negative_elbo, x, progress=False, **sizes, **options)


def our_problems(settings: Settings) -> dict[str, str | None]:
    """Why a way of calling `fit` cannot run here, or is not worth it; None if it can."""
    found = {}
    for name, way in WAYS.items():
        problem = bf16_problem(settings.threads) if way.precision == "bf16" else None
        found[name] = problem or (compiler_problem() if way.is_compiled else None)
    return found


def our_contenders(x: Tensor, settings: Settings) -> dict[str, Epochs]:
    """Every way of calling `fit` that works here, each with a model of its own, kept from run to run."""

    def contender(way: Way) -> Epochs:
        vae, options = new_vae(), {"compile": way.is_compiled, "precision": way.precision}
        return lambda: train(vae, x, num_epochs(settings), **options).seconds

    return {name: contender(WAYS[name]) for name, problem in our_problems(settings).items() if not problem}


def grey_images(settings: Settings) -> Tensor:
    """MNIST's training images, uint8 (N, 28, 28); the incomplete batch at their end is part of the task."""
    return mnist("train")[0][: settings.choose(60_000, 3 * BATCH_SIZE + 32)]


def unit_images(count: int) -> Tensor:
    """The first training images in [0, 1], (count, 784)."""
    return to_unit_interval(mnist("train")[0][:count])


def binary_images(split: Literal["train", "test"], count: int, seed: int) -> Tensor:
    """One binary draw of the first images of a split, (count, 784)."""
    x = to_unit_interval(mnist(split)[0][:count])
    return binarize(x, generator=torch.Generator().manual_seed(seed))


def num_epochs(settings: Settings) -> int:
    """Epochs of one run; the first does not count."""
    return settings.choose(3, 2)


def new_vae(latent_dim: int = LATENT_DIM) -> VAE:
    """The 784-400-20 Bernoulli VAE with ReLU, the same weights every time."""
    torch.manual_seed(0)
    return mlp_vae(DATA_DIM, latent_dim, hidden_dims=(HIDDEN_DIM,))


def square_size(settings: Settings) -> int:
    """Rows of the square product whose rate is the ceiling."""
    return settings.choose(2048, 256)
