"""Runs in alternation, and what is made of them: rates, ratios round by round, growth."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch.utils.benchmark import Timer

T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True)
class Settings:
    """How benchmarks are run.

    Attributes
    ----------
    threads : int
        Threads of torch, here and in processes started from here, unless a row says otherwise.
    rounds : int
        How often each contender runs.
    is_quick : bool
        Tiny sizes: they show that everything works, and nothing about speed.
    """

    threads: int = 1
    rounds: int = 5
    is_quick: bool = False

    def choose(self, full: T, quick: T) -> T:
        """Return the first in a real run and the second in a quick one."""
        return quick if self.is_quick else full


def alternate(contenders: Mapping[K, Callable[[], T]], rounds: int) -> dict[K, list[T]]:
    """Run all contenders round by round (A B C A B C ...), so that a slow minute hits them alike."""
    results: dict[K, list[T]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            results[name].append(run())
    return results


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Divide round by round; the median of these, unlike a ratio of medians, compares like with like."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def steady_rate(num_images: int, epoch_seconds: Sequence[float]) -> float:
    """Images per second after the first epoch, which compiles, allocates and warms up."""
    if len(epoch_seconds) < 2:
        raise ValueError(f"the first epoch does not count, so two are needed, got {len(epoch_seconds)}")
    return num_images / statistics.median(epoch_seconds[1:])


def seconds_per_call(function: Callable[[], object], threads: int, *, min_run_time: float = 0.5) -> float:
    """Median time of a short call.

    torch's Timer repeats, warms up and sets the number of threads (to one, if not told).  It would
    run a call of many seconds three times for one measurement, so those are timed in place.
    """
    timer = Timer("function()", globals={"function": function}, num_threads=threads)
    return float(timer.blocked_autorange(min_run_time=min_run_time).median)


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds that a call of some seconds takes, and what it returns."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def growth_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of log(cost) against log(size): 1 where twice the work takes twice as long."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
