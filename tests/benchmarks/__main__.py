"""Run benchmarks: `python -m tests.benchmarks [NAME ...]`; `--list` says which there are."""

import argparse
import dataclasses
import datetime
import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import machine, report
from tests.benchmarks.measuring import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE, PAGE_RESULTS = ROOT / "book" / "benchmarks.md", ROOT / "book" / "results" / "benchmarks.json"


BENCHMARKS = {  # a module with a function of the same name, and what it is about
    "training": ("training_step", "images per second: fit, the textbook loop, pythae, Pyro"),
    "floor": ("matmul_floor", "the share of the matrix-multiplication rate that fit reaches"),
    "nll": ("likelihood", "importance-weighted likelihood against pythae's get_nll"),
    "import": ("imports", "import vaecourse against import torch"),
    "processes": ("processes", "two gloo processes against one"),
    "growth": ("growth", "time and memory against the amount of work"),
    "checkpoint": ("checkpoint", "a checkpoint against a training step"),
    "grading": ("grading", "a submission against its bare cells, and a class of sixty"),
    "website": ("website", "this site against the stock theme: builds, Lighthouse, weight"),
}


def run(name: str, settings: Settings, load: float) -> dict[str, Any]:
    """Run one benchmark, and return its rows and measurements with when and where they were taken."""
    module, summary = BENCHMARKS[name]
    print(f"{name}: {summary} ...", file=sys.stderr, flush=True)
    outcome = getattr(importlib.import_module(f"tests.benchmarks.{module}"), module)(settings)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine.machine(),
        "versions": machine.versions(),
        **dataclasses.asdict(settings),
        "load": load,
        "rows": [row.as_json() for row in outcome.rows],
        "measurements": outcome.measurements,
    }


def run_all(names: list[str], settings: Settings, output: Path | None) -> dict[str, dict[str, Any]]:
    """Run benchmarks one after the other, and add each to the file as soon as it is done."""
    torch.set_num_threads(settings.threads)
    load = machine.load()  # of others: later it would be our own
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # what is compiled, is compiled anew
        for name in names:
            records[name] = run(name, settings, load)
            if output is not None:
                stored = report.read_records(output) | records
                report.write_records(output, {n: stored[n] for n in BENCHMARKS if n in stored})
    return records


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    add, cores = found.add_argument, os.cpu_count()
    add("names", nargs="*", metavar="NAME", help="benchmarks to run (default: all)")
    add("--list", action="store_true", help="list the benchmarks")
    add("--quick", action="store_true", help="tiny sizes, to see that everything works")
    add("--threads", type=int, default=cores, metavar="N", help="threads of torch (default: all cores)")
    add("--rounds", type=int, metavar="N", help="how often each contender runs (default: 5; 3 with --quick)")
    add("--output", type=Path, metavar="FILE", help="JSON file to add to; benchmarks run anew are replaced")
    add("--page", action="store_true", help="run nothing: write the stored table into the book's page")
    return found


def main() -> int:
    """Run what was asked for; print the table; the exit status is 2 for an unknown name."""
    options = parser().parse_args()
    if unknown := sorted(set(options.names) - set(BENCHMARKS)):
        parser().error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if options.threads < 1 or (options.rounds or 2) < 2:
        parser().error("at least one thread and two rounds are needed, for a range and for standard errors")
    if options.list:
        for name, (_, summary) in BENCHMARKS.items():
            print(f"{name:<12}{summary}")
    elif options.page:
        page = PAGE.read_text("utf-8")
        PAGE.write_text(report.page_with_table(page, report.read_records(PAGE_RESULTS)), "utf-8")
    else:
        rounds = options.rounds or (3 if options.quick else 5)
        settings = Settings(threads=options.threads, rounds=rounds, is_quick=options.quick)
        chosen = [name for name in BENCHMARKS if not options.names or name in options.names]
        print(report.text_table(run_all(chosen, settings, options.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
