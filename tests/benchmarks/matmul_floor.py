"""How much of the machine's matrix-multiplication rate a training step reaches.

The floor is the time that the products of a step would take at the rate of a large square
product, measured in the same rounds at the same precision.  A second, lower ceiling is the rate
of the step's own products with nothing between them: they are small, and slower.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from tests.benchmarks.ceilings import (
    ProductRecorder,
    bf16_problem,
    square_rate,
    step_flops,
    step_products,
)
from tests.benchmarks.measuring import Settings, alternate, ratios, seconds_per_call, steady_rate
from tests.benchmarks.report import Goal, Outcome, Row
from tests.benchmarks.task import (
    BATCH_SIZE,
    COMPILED,
    COMPILED_BF16,
    WAYS,
    Epochs,
    grey_images,
    new_vae,
    our_contenders,
    our_problem,
    square_size,
)
from vaecourse.datasets import to_unit_interval

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
GOALS = {COMPILED: Goal("≥", 70), COMPILED_BF16: Goal("≥", 40)}


def matmul_floor(settings: Settings) -> Outcome:
    """Measure loops and ceilings in the same rounds, all in operations per second."""
    x = to_unit_interval(grey_images(settings))
    flops = step_flops(new_vae(), x[:BATCH_SIZE])
    contenders: dict[str, Callable[[], float]] = {
        name: partial(loop_rate, train, len(x) * flops / BATCH_SIZE)
        for name, train in our_contenders(x, settings).items()
    }
    for name, dtype in DTYPES.items():
        if ceiling_problem(name, settings) is None:
            products = step_products(new_vae(), x[:BATCH_SIZE], dtype)
            contenders[square(name)] = partial(square_rate, square_size(settings), dtype, settings.threads)
            contenders[own(name)] = partial(own_rate, products, flops, settings.threads)
    rates = alternate(contenders, settings.rounds)
    count = Row("operations of a step, for each image", "MFLOP", values=[flops / BATCH_SIZE / 1e6])
    return Outcome(
        rows=[count, *ceiling_rows(rates, settings), *share_rows(rates, settings)],
        measurements={f"{name}: operations per second": values for name, values in rates.items()},
    )


def square(precision: str) -> str:
    """Name of the first ceiling."""
    return f"a large square product, {precision}"


def own(precision: str) -> str:
    """Name of the second ceiling."""
    return f"the step's own products, {precision}"


def ceiling_problem(precision: str, settings: Settings) -> str | None:
    """Why a ceiling is not worth measuring; None if it is."""
    return bf16_problem(settings.threads) if precision == "bf16" else None


def loop_rate(train: Epochs, epoch_flops: float) -> float:
    """Operations per second of a training loop, of its products alone."""
    return steady_rate(1, train()) * epoch_flops


def own_rate(products: ProductRecorder, flops: int, threads: int) -> float:
    """Operations per second of the products of a step, one after the other."""
    return flops / seconds_per_call(products.replay, threads)


def ceiling_rows(rates: Mapping[str, Sequence[float]], settings: Settings) -> list[Row]:
    """The rates of products."""
    return [
        Row(
            name,
            "GFLOP/s",
            None,
            [rate / 1e9 for rate in rates.get(name, ())],
            ceiling_problem(precision, settings),
        )
        for precision in DTYPES
        for name in (square(precision), own(precision))
    ]


def share_rows(rates: Mapping[str, Sequence[float]], settings: Settings) -> list[Row]:
    """The share of each rate that every loop reaches; only the first has a goal."""
    rows = []
    for name, way in WAYS.items():
        problem = our_problem(name, settings.threads)
        for ceiling, goal in ((square(way.precision), GOALS.get(name)), (own(way.precision), None)):
            values = [] if problem else [100 * share for share in ratios(rates[name], rates[ceiling])]
            rows.append(Row(f"{name} / {ceiling}", "%", goal, values, problem))
    return rows
