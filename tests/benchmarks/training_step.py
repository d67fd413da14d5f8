"""Images per second of a training loop: ours, the textbook's, pythae's and Pyro's."""

from functools import partial

import torch
from torch import Tensor

from tests.benchmarks import task
from tests.benchmarks.ceilings import square_rate, step_flops
from tests.benchmarks.libraries import pyro_contender, pythae_contender
from tests.benchmarks.machine import missing
from tests.benchmarks.measuring import Settings, alternate, steady_rate
from tests.benchmarks.report import Goal, Outcome, Rounds
from tests.benchmarks.textbook import textbook_contender
from vaecourse.datasets import to_unit_interval

TEXTBOOK, PYTHAE, PYRO, FASTER = "textbook loop", "pythae's trainer", "Pyro's SVI", "the faster library"
FLOOR = "matrix products alone, float32"
# A goal is for the compiled loop in the precision that all the others use.
GOALS = {(task.COMPILED, TEXTBOOK): Goal("≥", 5), (task.COMPILED, FASTER): Goal("≥", 4)}


def training_step(settings: Settings) -> Outcome:
    """Train the same network on the same images with every loop, in alternation."""
    images, epochs = task.grey_images(settings), task.num_epochs(settings)
    x = to_unit_interval(images)
    problems = task.our_problems(settings)
    problems |= {PYTHAE: missing("pythae"), PYRO: missing("pyro"), FASTER: missing("pythae", "pyro")}
    contenders = task.our_contenders(x, settings)
    contenders[TEXTBOOK] = textbook_contender(images, epochs)
    contenders[FLOOR] = partial(floor_seconds, x, settings)
    for name, make in {PYTHAE: pythae_contender, PYRO: pyro_contender}.items():
        if problems[name] is None:
            contenders[name] = make(x, epochs)
    seconds = alternate(contenders, settings.rounds)
    rates = {name: [steady_rate(len(x), run) for run in runs] for name, runs in seconds.items()}
    if problems[FASTER] is None:
        rates[FASTER] = [max(pair) for pair in zip(rates[PYTHAE], rates[PYRO], strict=True)]
    loops = Rounds(rates, problems)
    compilation = Rounds({name: [runs[0][0] - runs[0][1]] for name, runs in seconds.items()}, problems)
    rows = [loops.row(name, "images/s") for name in [*task.WAYS, TEXTBOOK, PYTHAE, PYRO, FLOOR]]
    for other in (TEXTBOOK, FASTER):
        rows += [loops.ratio(name, other, goal=GOALS.get((name, other))) for name in [*task.WAYS, FLOOR]]
    for name in (name for name, way in task.WAYS.items() if way.is_compiled):
        rows.append(compilation.row(name, "s", what=f"{name}: the first epoch takes longer by"))
    return Outcome(rows, {f"{name}: seconds of each epoch": runs for name, runs in seconds.items()})


def floor_seconds(x: Tensor, settings: Settings) -> list[float]:
    """Two epochs of nothing but the steps' products, at the rate of a large square product."""
    rate = square_rate(task.square_size(settings), torch.float32, settings.threads)
    return 2 * [step_flops(task.new_vae(), x[:1]) * len(x) / rate]
