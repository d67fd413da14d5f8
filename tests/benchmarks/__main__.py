"""Run benchmarks: `python -m tests.benchmarks [NAME ...]`; `--list` says which there are."""

import argparse
import datetime
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from tests.benchmarks import machine, report
from tests.benchmarks.checkpoint import checkpoint
from tests.benchmarks.grading import grading
from tests.benchmarks.growth import growth
from tests.benchmarks.imports import imports
from tests.benchmarks.likelihood import likelihood
from tests.benchmarks.matmul_floor import matmul_floor
from tests.benchmarks.measuring import Settings
from tests.benchmarks.processes import processes
from tests.benchmarks.training_step import training_step
from tests.benchmarks.website import website

ROOT = Path(__file__).resolve().parents[2]
PAGE, PAGE_RESULTS = ROOT / "book" / "benchmarks.md", ROOT / "book" / "results" / "benchmarks.json"


class Benchmark(NamedTuple):
    """A function, and what it is about."""

    run: Callable[[Settings], report.Outcome]
    summary: str


BENCHMARKS = {
    "training": Benchmark(training_step, "images per second: fit, the textbook loop, pythae, Pyro"),
    "floor": Benchmark(matmul_floor, "the share of the matrix-multiplication rate that fit reaches"),
    "nll": Benchmark(likelihood, "importance-weighted likelihood against pythae's get_nll"),
    "import": Benchmark(imports, "import vaecourse against import torch"),
    "processes": Benchmark(processes, "two gloo processes against one"),
    "growth": Benchmark(growth, "time and memory against the amount of work"),
    "checkpoint": Benchmark(checkpoint, "a checkpoint against a training step"),
    "grading": Benchmark(grading, "a submission against its bare cells, and a class of sixty"),
    "website": Benchmark(website, "this site against the stock theme: builds, Lighthouse, weight"),
}


def run(name: str, settings: Settings, load: float | None) -> dict[str, Any]:
    """Run one benchmark and return its rows and measurements with when and where they were taken."""
    print(f"{name}: {BENCHMARKS[name].summary} ...", file=sys.stderr, flush=True)
    outcome = BENCHMARKS[name].run(settings)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "threads": settings.threads,
        "rounds": settings.rounds,
        "is_quick": settings.is_quick,
        "load": load,
        "rows": [row.as_json() for row in outcome.rows],
        "measurements": outcome.measurements,
    }


def run_all(names: list[str], settings: Settings, output: Path | None) -> dict[str, dict[str, Any]]:
    """Run benchmarks one after the other, and add each to the file as soon as it is done."""
    torch.set_num_threads(settings.threads)
    load = machine.load()  # of others: later it would be our own
    records = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder),  # what is compiled, is compiled anew
    ):
        for name in names:
            records[name] = run(name, settings, load)
            if output is not None:
                stored = report.read_records(output) | records
                report.write_records(output, {n: stored[n] for n in BENCHMARKS if n in stored})
    return records


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="benchmarks to run (default: all)")
    add("--list", action="store_true", help="list the benchmarks")
    add("--quick", action="store_true", help="tiny sizes, to see that everything works")
    add(
        "--threads",
        type=int,
        default=os.cpu_count(),
        metavar="N",
        help="threads of torch (default: all cores)",
    )
    add("--rounds", type=int, metavar="N", help="how often each contender runs (default: 5; 3 with --quick)")
    add("--output", type=Path, metavar="FILE", help="JSON file to add to; benchmarks run anew are replaced")
    add(
        "--page",
        action="store_true",
        help="run nothing: write the table of book/results into the book's page",
    )
    return parser


def write_page() -> None:
    """Put the table of the stored results into the book's page."""
    page = PAGE.read_text("utf-8")
    PAGE.write_text(report.page_with_table(page, report.read_records(PAGE_RESULTS)), "utf-8")


def main() -> int:
    """Run what was asked for; print the table; the exit status is 2 for an unknown name."""
    parser = arguments()
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if options.list:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:<12}{benchmark.summary}")
        return 0
    if options.page:
        write_page()
        return 0
    if options.threads < 1 or (options.rounds or 2) < 2:
        parser.error("at least one thread and two rounds are needed, for a range and for standard errors")
    settings = Settings(
        threads=options.threads,
        rounds=options.rounds or (3 if options.quick else 5),
        is_quick=options.quick,
    )
    chosen = [name for name in BENCHMARKS if not options.names or name in options.names]
    print(report.text_table(run_all(chosen, settings, options.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
