"""Run everything that must pass, stage by stage: `python -m tests [stage ...]`, `--check` or `--list`.

One line per stage; what a stage printed, with its slowest tests, is in `_build/test/<stage>.log`, and
its end is shown when the stage fails.  A failing stage does not keep the later ones from running.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "_build" / "test"
BIN = Path(sys.executable).parent
PYTHON = [sys.executable, "-m"]
WORKERS = min(os.cpu_count() or 1, 8)
# Workers compute with one thread each: two that share two cores would wait for each other.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
PYTEST = [*PYTHON, "pytest", "-q", "--color=no", "--tb=short", "--durations=25"]
PYTEST += ["-n", str(WORKERS), "--dist", "loadgroup", "-m", "not slow"]
COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)\b")
COLOR = re.compile(r"\x1b\[[\d;]*m")
TAIL = 60


class Stage(NamedTuple):
    """A name, its command, and what is deleted before it runs; neighbours of one group run side by side."""

    name: str
    command: list[str]
    stale: tuple[str, ...] = ()
    group: str | None = None
    takes_tracked: bool = False  # the files that git knows are added to the command


def files(*patterns: str) -> list[str]:
    """Return the files of the repository that match a pattern."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


# What people import; of the wings, the modules with a public name in them.
PUBLIC = files("vaecourse/*.py", "vaecourse/likelihoods/*.py", "vaecourse/training/[cdl]*.py")
PUBLIC += files("vaecourse/diagnosis/__init__.py", "vaecourse/diagnosis/explaining/__init__.py")
NOTEBOOKS = files("book/*.ipynb", "book/coursework/source/*/*.ipynb")
WINGS = ["tests/core", "tests/training", "tests/diagnosis"]
REST = ["tests/cli", "tests/coursework", "tests/book", "tests/benchmarks", "vaecourse"]
PAPERMILL = "tests/book/test_papermill.py"
BUILD = [str(BIN / "jupyter-book"), "build", ".", "--all", "-W", "-n", "--keep-going"]
PRINT = [*BUILD, "--builder", "singlehtml", "--path-output", "_build/pdf"]
# The strict mode: every cell with a stored output is compared, whatever its tags.  What has been
# executed goes into the cache from which the site is then built.
NBVAL = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300", "-p", "tests.book.executed"]
STATIC = [
    Stage("format", [*PYTHON, "ruff", "format", "--check"], group="source", takes_tracked=True),
    Stage("lint", [*PYTHON, "ruff", "check"], group="source", takes_tracked=True),
    Stage("imports", [str(BIN / "lint-imports")], group="source"),
    Stage("docstrings", [*PYTHON, "numpydoc", "lint", *PUBLIC], group="source"),
    Stage("types", [*PYTHON, "mypy"], group="source"),
]
QUICK = Stage("quick", [*PYTEST, "-m", "not slow and not long", *WINGS], group="source")
STAGES = [
    *STATIC,
    Stage("unit", [*PYTEST, f"--ignore={PAPERMILL}", *WINGS, *REST], group="source"),
    Stage("notebooks", [*PYTEST, *NBVAL, *NOTEBOOKS, PAPERMILL]),
    # Without --all or with an old doctree, -W forgets the warnings of the previous build.
    Stage("build", BUILD, stale=("_build/html", "_build/.doctrees"), group="build"),
    Stage("print", PRINT, stale=("_build/pdf",), group="build"),
    Stage("site", [*PYTEST, "tests/site"]),
]


def tracked() -> list[str]:
    """Return the Python files and notebooks that git knows, whatever else lies about; all without git."""
    command = ["git", "ls-files", "-z", "*.py", "*.ipynb"]
    try:
        known = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    except FileNotFoundError:
        known = []
    return [name for name in known if name and (ROOT / name).exists()] or ["."]


def counts(command: list[str], output: str, code: int) -> Counter:
    """Return passed, failed and skipped: pytest's closing line, or one test for any other command."""
    found = Counter()
    if "pytest" in command:
        closing = next(
            (line for line in reversed(output.splitlines()) if re.search(r" in [\d.]+s", line)), ""
        )
        for number, outcome in COUNT.findall(closing):
            found[re.sub("errors?", "failed", outcome)] += int(number)
    elif code == 0:
        found["passed"] = 1
    if code != 0 and not found["failed"]:
        found["failed"] = 1
    return found


def run(stage: Stage) -> Counter:
    """Run a stage, print its line, and return its counts."""
    start = time.monotonic()
    for folder in stage.stale:
        shutil.rmtree(ROOT / folder, ignore_errors=True)
    done = subprocess.run(
        [*stage.command, *(tracked() if stage.takes_tracked else [])],
        cwd=ROOT,
        env={**os.environ, **(ONE_THREAD if "pytest" in stage.command else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    output = COLOR.sub("", done.stdout)
    lines = [f"$ {' '.join(stage.command)}", *output.rstrip().splitlines()]
    total = counts(stage.command, output, done.returncode)
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{stage.name}.log"
    log.write_text("\n".join(lines) + "\n", "utf-8")
    mark = "[FAIL]" if total["failed"] else "[ok]  "
    summary = ", ".join(f"{number} {outcome}" for outcome, number in total.items())
    print(f"{mark} {stage.name:<12} {summary:<32} {time.monotonic() - start:7.1f} s", flush=True)
    for line in (line for line in lines if line.startswith("SKIPPED")):
        print(f"       {line}")
    if total["failed"]:
        print(*lines[-TAIL:], f"the whole log: {log.relative_to(ROOT)}", sep="\n", flush=True)
    return total


def main() -> int:
    """Run the chosen stages; the exit status is 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests", description="Run everything that must pass.")
    parser.add_argument("stages", nargs="*", metavar="stage", help="stages to run, all by default")
    parser.add_argument("--check", action="store_true", help="only what a commit needs: a minute")
    parser.add_argument("--list", action="store_true", help="list the stages and their commands")
    options = parser.parse_args()
    stages = [*STATIC, QUICK] if options.check else STAGES
    if unknown := sorted(set(options.stages) - {stage.name for stage in stages}):
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(stage.name for stage in stages)}")
    chosen = [stage for stage in stages if stage.name in options.stages or not options.stages]
    if options.list:
        for stage in chosen:
            print(f"{stage.name}:", " ".join([Path(stage.command[0]).name, *stage.command[1:]]), sep="\n    ")
        return 0
    start = time.monotonic()
    results: list[Counter] = []
    with ThreadPoolExecutor(2) as pool:
        for _, neighbours in groupby(chosen, key=lambda stage: stage.group or stage.name):
            results += pool.map(run, neighbours)
    failed = [stage.name for stage, result in zip(chosen, results, strict=True) if result["failed"]]
    total = sum(results, Counter())
    verdict = f"failed: {', '.join(failed)}" if failed else "all stages passed"
    print(f"\n{verdict}, {time.monotonic() - start:.0f} s")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
