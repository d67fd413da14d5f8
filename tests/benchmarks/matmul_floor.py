"""How much of the machine's matrix-multiplication rate a training step reaches.

The floor is the time that the products of a step would take at the rate of a large square
product, measured in the same rounds at the same precision.  A second, lower ceiling is the rate
of the step's own products with nothing between them: they are small, and slower.
"""

from collections.abc import Callable
from functools import partial

import torch

from tests.benchmarks import task
from tests.benchmarks.ceilings import bf16_problem, square_rate, step_flops, step_products
from tests.benchmarks.measuring import Settings, alternate, seconds_per_call, steady_rate
from tests.benchmarks.report import Goal, Outcome, Rounds, Row
from vaecourse.datasets import to_unit_interval

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
SQUARE, OWN = "a large square product, {}", "the step's own products, {}"
GOALS = {task.COMPILED: Goal("≥", 70), task.COMPILED_BF16: Goal("≥", 40)}


def matmul_floor(settings: Settings) -> Outcome:
    """Measure loops and ceilings in the same rounds, all in operations per second."""
    x, threads = to_unit_interval(task.grey_images(settings)), settings.threads
    batch, size = x[: task.BATCH_SIZE], task.square_size(settings)
    flops = step_flops(task.new_vae(), batch)

    def loop_rate(train: task.Epochs) -> float:
        return steady_rate(1, train()) * len(x) * flops / task.BATCH_SIZE

    def own_rate(replay: Callable[[], None]) -> float:
        return flops / seconds_per_call(replay, threads)

    contenders: dict[str, Callable[[], float]] = {
        name: partial(loop_rate, train) for name, train in task.our_contenders(x, settings).items()
    }
    problems = task.our_problems(settings)
    for precision, dtype in DTYPES.items():
        square, own = SQUARE.format(precision), OWN.format(precision)
        problems[square] = problems[own] = bf16_problem(threads) if precision == "bf16" else None
        if problems[own] is None:
            contenders[square] = partial(square_rate, size, dtype, threads)
            contenders[own] = partial(own_rate, step_products(task.new_vae(), batch, dtype).replay)
    rates = Rounds(alternate(contenders, settings.rounds), problems)
    rows = [Row("operations of a step, for each image", "MFLOP", values=[flops / task.BATCH_SIZE / 1e6])]
    for precision in DTYPES:
        rows += [rates.row(name.format(precision), "GFLOP/s", scale=1e-9) for name in (SQUARE, OWN)]
    for name, way in task.WAYS.items():
        for ceiling, goal in ((SQUARE, GOALS.get(name)), (OWN, None)):
            rows.append(rates.ratio(name, ceiling.format(way.precision), "%", scale=100, goal=goal))
    return Outcome(rows, {f"{name}: operations per second": values for name, values in rates.values.items()})
