"""The importance-weighted likelihood, against pythae's `get_nll` on the same trained model."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tests.benchmarks.ceilings import square_rate
from tests.benchmarks.libraries import pythae_vae
from tests.benchmarks.machine import missing
from tests.benchmarks.measuring import Settings, alternate, ratios
from tests.benchmarks.report import Goal, Outcome, Row
from tests.benchmarks.task import (
    BATCH_SIZE,
    DATA_DIM,
    HIDDEN_DIM,
    LATENT_DIM,
    binary_images,
    new_vae,
    square_size,
)
from vaecourse.evaluation import nll_estimate
from vaecourse.models import VAE
from vaecourse.objectives import negative_elbo
from vaecourse.training import fit

OURS, PYTHAE, FLOOR = "nll_estimate", "pythae's get_nll", "the decoder's products alone"
# With three rounds, two estimates of one number differ by more in 1 of 130 cases; the draws are seeded.
AGREEMENT = Goal("≤", 5)


class Timed(NamedTuple):
    """Seconds that an estimate took, and its value in nats per image."""

    seconds: float
    nats: float | None


def likelihood(settings: Settings) -> Outcome:
    """Estimate the same likelihoods by both, in alternation; values that disagree are an error."""
    vae, x = trained_vae(settings), binary_images("test", settings.choose(1000, 20), seed=1)
    num_samples, problem = settings.choose(500, 50), missing("pythae")
    contenders: dict[str, Callable[[], Timed]] = {
        OURS: partial(time_ours, vae, x, num_samples),
        FLOOR: partial(time_floor, len(x) * num_samples, settings),
    }
    if problem is None:
        contenders[PYTHAE] = partial(time_pythae, vae, x, num_samples)
    torch.manual_seed(0)
    runs = alternate(contenders, settings.rounds)
    distance = None if problem else checked_distance(*([run.nats for run in runs[n]] for n in (OURS, PYTHAE)))
    return Outcome(
        rows=rows({name: [run.seconds for run in found] for name, found in runs.items()}, distance, problem),
        measurements={f"{name}: seconds and nats": found for name, found in runs.items()},
    )


def rows(seconds: Mapping[str, Sequence[float]], distance: float | None, problem: str | None) -> list[Row]:
    """Times, the ratio, what the ratio would be if only the products cost time, and the agreement."""
    pythae = seconds.get(PYTHAE, ())
    faster, fastest = (() if problem else ratios(pythae, seconds[name]) for name in (OURS, FLOOR))
    agreement = () if distance is None else (distance,)
    return [
        Row(OURS, "s", None, seconds[OURS]),
        Row(PYTHAE, "s", None, pythae, problem),
        Row(f"{FLOOR}, at the rate of a square product", "s", None, seconds[FLOOR]),
        Row(f"{PYTHAE} / {OURS}", "×", Goal("≥", 20), faster, problem),
        Row(f"{PYTHAE} / {FLOOR}", "×", None, fastest, problem),
        Row("difference of the mean values, in standard errors", "", AGREEMENT, agreement, problem),
    ]


def trained_vae(settings: Settings) -> VAE:
    """A model that knows digits a little."""
    x, vae = binary_images("train", settings.choose(60_000, 1024), seed=0), new_vae()
    fit(vae, negative_elbo, x, num_epochs=5, batch_size=BATCH_SIZE, progress=False)
    return vae


def time_ours(vae: VAE, x: Tensor, num_samples: int) -> Timed:
    """Our estimate."""
    start = time.perf_counter()
    nats = nll_estimate(vae, x, num_samples=num_samples).nats
    return Timed(time.perf_counter() - start, nats)


def time_pythae(vae: VAE, x: Tensor, num_samples: int) -> Timed:
    """pythae's estimate, asked for as its own scripts do: without gradients, all samples at once."""
    model = pythae_vae(vae).eval()
    start = time.perf_counter()
    with torch.no_grad():
        nats = -float(model.get_nll(x, n_samples=num_samples, batch_size=num_samples))
    return Timed(time.perf_counter() - start, nats)


def time_floor(num_decoded: int, settings: Settings) -> Timed:
    """What the decoder's products would take at the rate of a large square product."""
    flops = num_decoded * 2 * (LATENT_DIM * HIDDEN_DIM + HIDDEN_DIM * DATA_DIM)
    return Timed(flops / square_rate(square_size(settings), torch.float32, settings.threads), None)


def checked_distance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Difference of the means in its standard errors, which the rounds show; a large one is an error."""
    variance = statistics.variance(ours) / len(ours) + statistics.variance(theirs) / len(theirs)
    distance = abs(statistics.fmean(ours) - statistics.fmean(theirs)) / math.sqrt(variance)
    if not AGREEMENT.is_reached(distance):
        raise ArithmeticError(
            f"ours are {ours} nats, pythae's {theirs}: {distance:.1f} standard errors apart"
        )
    return distance
