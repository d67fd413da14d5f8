"""The importance-weighted likelihood, against pythae's `get_nll` on the same trained model."""

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from tests.benchmarks import task
from tests.benchmarks.ceilings import square_rate
from tests.benchmarks.libraries import pythae_vae
from tests.benchmarks.machine import missing
from tests.benchmarks.measuring import Settings, alternate, timed
from tests.benchmarks.report import Goal, Outcome, Rounds, Row
from vaecourse.evaluation import nll_estimate

OURS, PYTHAE, FLOOR = "nll_estimate", "pythae's get_nll", "the decoder's products alone"
# With three rounds, two estimates of one number differ by more in 1 of 130 cases; the draws are seeded.
AGREEMENT = Goal("≤", 5)


def likelihood(settings: Settings) -> Outcome:
    """Estimate the same likelihoods by both, in alternation; values that disagree are an error."""
    vae, num_samples = task.new_vae(), settings.choose(500, 50)
    digits = task.binary_images("train", settings.choose(60_000, 1024), seed=0)
    task.train(vae, digits, 5)
    x = task.binary_images("test", settings.choose(1000, 20), seed=1)
    flops = len(x) * num_samples * 2 * (task.LATENT_DIM * task.HIDDEN_DIM + task.HIDDEN_DIM * task.DATA_DIM)

    def ours() -> float:
        return nll_estimate(vae, x, num_samples=num_samples).nats

    def pythae(model: Any) -> float:
        """Ask as pythae's own scripts do: without gradients, all samples at once."""
        with torch.no_grad():
            return -float(model.get_nll(x, n_samples=num_samples, batch_size=num_samples))

    def floor() -> tuple[float, None]:
        """Take the decoder's products at the rate of a large square product."""
        return flops / square_rate(task.square_size(settings), torch.float32, settings.threads), None

    contenders: dict[str, Callable[[], tuple]] = {OURS: partial(timed, ours), FLOOR: floor}
    if (problem := missing("pythae")) is None:
        contenders[PYTHAE] = partial(timed, partial(pythae, pythae_vae(vae).eval()))
    torch.manual_seed(0)
    runs = alternate(contenders, settings.rounds)
    seconds = Rounds({name: [run[0] for run in found] for name, found in runs.items()}, {PYTHAE: problem})
    nats = [[run[1] for run in runs[name]] for name in (OURS, PYTHAE) if not problem]
    agreement = [] if problem else [checked_distance(*nats)]
    rows = [
        seconds.row(OURS, "s"),
        seconds.row(PYTHAE, "s"),
        seconds.row(FLOOR, "s", what=f"{FLOOR}, at the rate of a square product"),
        seconds.ratio(PYTHAE, OURS, goal=Goal("≥", 20)),
        seconds.ratio(PYTHAE, FLOOR),
        Row("difference of the mean values, in standard errors", "", AGREEMENT, agreement, problem),
    ]
    return Outcome(rows, {f"{name}: seconds and nats": found for name, found in runs.items()})


def checked_distance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Difference of the means in its standard errors, which the rounds show; a large one is an error."""
    variance = statistics.variance(ours) / len(ours) + statistics.variance(theirs) / len(theirs)
    distance = abs(statistics.fmean(ours) - statistics.fmean(theirs)) / math.sqrt(variance)
    if not AGREEMENT.is_reached(distance):
        raise ArithmeticError(
            f"ours are {ours} nats, pythae's {theirs}: {distance:.1f} standard errors apart"
        )
    return distance
