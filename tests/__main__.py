"""Run everything that must pass, stage by stage: `python -m tests [stage ...]`, or `--list`.

One line per stage; what a stage printed is in `_build/test/<stage>.log`, and its end is shown
when the stage fails.  A failing stage does not keep the later ones from running.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "_build" / "test"
PYTHON = [sys.executable, "-m"]
PYTEST = [*PYTHON, "pytest", "-q", "--color=no", "--tb=short"]
SITE_TESTS = ["tests/test_site.py", "tests/test_live.py", "tests/test_pdf.py"]  # of what the build has made
PAPERMILL_TEST = "tests/test_papermill.py"
COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)\b")
COLOR = re.compile(r"\x1b\[[\d;]*m")
PACKAGE = ["tests", "vaecourse"]
LATER = [f"--ignore={test}" for test in [*SITE_TESTS, PAPERMILL_TEST]]
TAIL = 60


class Stage(NamedTuple):
    """A name, the commands that make it up, and what is deleted before they run."""

    name: str
    commands: list[list[str]]
    stale: tuple[str, ...] = ()


def files(pattern: str) -> list[str]:
    """Return the files of the repository that match a pattern, or the pattern where none does."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)) or [pattern]


JUPYTER_BOOK = str(Path(sys.executable).with_name("jupyter-book"))
SITE = [JUPYTER_BOOK, "build", ".", "--all", "-W", "-n", "--keep-going"]
# The strict mode: every cell with a stored output is compared, whatever its tags.
NBVAL = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300"]
STAGES = [
    Stage("format", [[*PYTHON, "ruff", "format", "--check", "."]]),
    Stage("lint", [[*PYTHON, "ruff", "check", "."]]),
    Stage("types", [[*PYTHON, "mypy"]]),
    Stage("docstrings", [[*PYTHON, "numpydoc", "lint", *files("vaecourse/*.py")]]),
    Stage(
        "unit",
        [[*PYTEST, "-m", "not slow", *LATER, *PACKAGE]],
    ),
    # Without --all or with an old doctree, -W forgets the warnings of the previous build.
    Stage(
        "site",
        [SITE, [*PYTEST, *SITE_TESTS]],
        stale=("_build/html", "_build/.doctrees"),
    ),
    Stage(
        "notebooks", [[*PYTEST, *NBVAL, *files("book/*.ipynb"), *files("book/coursework/source/*/*.ipynb")]]
    ),
    Stage("papermill", [[*PYTEST, PAPERMILL_TEST]]),
]


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
    start, total, lines = time.monotonic(), Counter(), []
    for folder in stage.stale:
        shutil.rmtree(ROOT / folder, ignore_errors=True)
    for command in stage.commands:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        output = COLOR.sub("", done.stdout)
        lines += [f"$ {' '.join(command)}", *output.rstrip().splitlines()]
        total += counts(command, output, done.returncode)
        if done.returncode != 0:
            break
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
    parser.add_argument("--list", action="store_true", help="list the stages and their commands")
    options = parser.parse_args()
    if unknown := sorted(set(options.stages) - {stage.name for stage in STAGES}):
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(stage.name for stage in STAGES)}")
    chosen = [stage for stage in STAGES if stage.name in options.stages or not options.stages]
    if options.list:
        for stage in chosen:
            commands = [" ".join([Path(command[0]).name, *command[1:]]) for command in stage.commands]
            print(f"{stage.name}:", *commands, sep="\n    ")
        return 0
    start = time.monotonic()
    results = {stage.name: run(stage) for stage in chosen}
    failed = [name for name, result in results.items() if result["failed"]]
    total = sum(results.values(), Counter())
    verdict = f"failed: {', '.join(failed)}" if failed else "all stages passed"
    print(f"\n{verdict}, {time.monotonic() - start:.0f} s")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
