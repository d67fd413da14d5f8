"""Images per second of a training loop: ours, the textbook's, pythae's and Pyro's."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from tests.benchmarks.ceilings import square_rate, step_flops
from tests.benchmarks.libraries import pyro_contender, pythae_contender
from tests.benchmarks.machine import missing
from tests.benchmarks.measuring import Settings, alternate, ratios, steady_rate
from tests.benchmarks.report import Goal, Outcome, Row
from tests.benchmarks.task import (
    COMPILED,
    WAYS,
    Epochs,
    grey_images,
    new_vae,
    num_epochs,
    our_contenders,
    our_problem,
    square_size,
)
from tests.benchmarks.textbook import textbook_contender
from vaecourse.datasets import to_unit_interval

TEXTBOOK, PYTHAE, PYRO, FASTER = "textbook loop", "pythae's trainer", "Pyro's SVI", "the faster library"
FLOOR = "matrix products alone, float32"
# A goal is for the compiled loop in the precision that all the others use.
GOALS = {(COMPILED, TEXTBOOK): Goal("≥", 5), (COMPILED, FASTER): Goal("≥", 4)}


def training_step(settings: Settings) -> Outcome:
    """Train the same network on the same images with every loop, in alternation."""
    images, epochs = grey_images(settings), num_epochs(settings)
    x = to_unit_interval(images)
    contenders: dict[str, Epochs] = our_contenders(x, settings)
    contenders[TEXTBOOK] = textbook_contender(images, epochs)
    contenders[FLOOR] = partial(floor_seconds, x, settings)
    problems = find_problems(settings)
    if problems[PYTHAE] is None:
        contenders[PYTHAE] = pythae_contender(x, epochs)
    if problems[PYRO] is None:
        contenders[PYRO] = pyro_contender(x, epochs)
    seconds = alternate(contenders, settings.rounds)
    rates = {name: [steady_rate(len(x), run) for run in runs] for name, runs in seconds.items()}
    if problems[FASTER] is None:
        rates[FASTER] = [max(pair) for pair in zip(rates[PYTHAE], rates[PYRO], strict=True)]
    return Outcome(
        rows=[
            *rate_rows(rates, problems),
            *ratio_rows(rates, problems),
            *compilation_rows(seconds, problems),
        ],
        measurements={f"{name}: seconds of each epoch": runs for name, runs in seconds.items()},
    )


def floor_seconds(x: Tensor, settings: Settings) -> list[float]:
    """Two epochs of nothing but the steps' products, at the rate of a large square product."""
    rate = square_rate(square_size(settings), torch.float32, settings.threads)
    return 2 * [step_flops(new_vae(), x[:1]) * len(x) / rate]


def find_problems(settings: Settings) -> dict[str, str | None]:
    """Why a loop cannot run here, or None."""
    ours = {name: our_problem(name, settings.threads) for name in WAYS}
    libraries = {PYTHAE: missing("pythae"), PYRO: missing("pyro"), FASTER: missing("pythae", "pyro")}
    return ours | libraries | {TEXTBOOK: None, FLOOR: None}


def rate_rows(rates: Mapping[str, Sequence[float]], problems: Mapping[str, str | None]) -> list[Row]:
    """Images per second of every loop."""
    return [
        Row(name, "images/s", None, rates.get(name, ()), problems[name])
        for name in [*WAYS, TEXTBOOK, PYTHAE, PYRO, FLOOR]
    ]


def ratio_rows(rates: Mapping[str, Sequence[float]], problems: Mapping[str, str | None]) -> list[Row]:
    """How many times faster than the others ours is, round by round, and how many times it could be."""
    rows = []
    for other in (TEXTBOOK, FASTER):
        for name in [*WAYS, FLOOR]:
            problem = problems[name] or problems[other]
            values = () if problem else ratios(rates[name], rates[other])
            rows.append(Row(f"{name} / {other}", "×", GOALS.get((name, other)), values, problem))
    return rows


def compilation_rows(
    seconds: Mapping[str, Sequence[Sequence[float]]], problems: Mapping[str, str | None]
) -> list[Row]:
    """What compilation costs once: the first epoch of the first run, less the second."""
    rows = []
    for name in (name for name, way in WAYS.items() if way.is_compiled):
        values = [seconds[name][0][0] - seconds[name][0][1]] if name in seconds else ()
        rows.append(Row(f"{name}: the first epoch takes longer by", "s", None, values, problems[name]))
    return rows
