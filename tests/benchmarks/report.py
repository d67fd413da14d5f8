"""What a benchmark hands over, the table and the JSON file made of it, and the table in the book."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tests.benchmarks.measuring import ratios

FORMAT = 1
HEADER = ["benchmark", "what", "median", "range of the rounds", "goal", "reached"]
BEGIN, END = "<!-- begin: written by python -m tests.benchmarks --page -->", "<!-- end -->"
NONE = "–"
Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Goal:
    """A bound that a figure should keep."""

    relation: Literal["≥", "≤"]
    value: float

    def is_reached(self, figure: float) -> bool:
        """Whether a figure keeps the bound."""
        return figure >= self.value if self.relation == "≥" else figure <= self.value


@dataclass(frozen=True)
class Row:
    """One line of the table: the median over rounds and its range, or the reason why there is none."""

    what: str
    unit: str = ""
    goal: Goal | None = None
    values: Sequence[float] = ()
    not_run: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything that the table shows."""
        median = statistics.median(self.values) if self.values else None
        return {
            "what": self.what,
            "unit": self.unit,
            "median": median,
            "lowest": min(self.values, default=None),
            "highest": max(self.values, default=None),
            "goal": asdict(self.goal) if self.goal else None,
            "reached": self.goal.is_reached(median) if self.goal and median is not None else None,
            "not_run": self.not_run,
        }


class Rounds(NamedTuple):
    """What each contender measured in every round, and why some did not run."""

    values: Mapping[str, Sequence[float]]
    problems: Mapping[str, str | None] = {}

    def row(self, name: str, unit: str, *, what: str = "", scale: float = 1, goal: Goal | None = None) -> Row:
        """The figures of one contender."""
        values = [scale * value for value in self.values.get(name, ())]
        return Row(what or name, unit, goal, values, self.problems.get(name))

    def ratio(
        self, a: str, b: str, unit: str = "×", *, what: str = "", scale: float = 1, goal: Goal | None = None
    ) -> Row:
        """One contender over another, round by round; neither may have a problem."""
        problem = self.problems.get(a) or self.problems.get(b)
        values = [] if problem else [scale * ratio for ratio in ratios(self.values[a], self.values[b])]
        return Row(what or f"{a} / {b}", unit, goal, values, problem)


@dataclass(frozen=True)
class Outcome:
    """Rows for the table, and every single measurement behind them."""

    rows: list[Row]
    measurements: Mapping[str, Sequence[object]] = field(default_factory=dict)


def number(value: float, unit: str = "") -> str:
    """Three significant digits with thousands separators, and the unit."""
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f} {unit}".rstrip()


def cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """One line of the table as text."""
    bound = row["goal"]
    goal = f"{bound['relation']} {bound['value']:g} {row['unit']}".rstrip() if bound else NONE
    if row["median"] is None:
        return [name, row["what"], "not run", NONE, goal, NONE]
    is_single = row["lowest"] == row["highest"]
    spread = NONE if is_single else f"{number(row['lowest'])} to {number(row['highest'])}"
    reached = {True: "yes", False: "no", None: NONE}[row["reached"]]
    return [name, row["what"], number(row["median"], row["unit"]), spread, goal, reached]


def all_cells(records: Records) -> list[list[str]]:
    """The lines of all benchmarks, without the header."""
    return [cells(name, row) for name, record in records.items() for row in record["rows"]]


def notes(records: Records) -> list[str]:
    """Why rows were not run, and when and on what the benchmarks ran; equal answers share a line."""
    reasons = [row["not_run"] for record in records.values() for row in record["rows"] if row["not_run"]]
    names: dict[str, list[str]] = {}
    for name, record in records.items():
        machine, versions = record["machine"], record["versions"]
        kind = " A quick run, which says nothing about speed." if record["is_quick"] else ""
        busy = " Other work ran beside it." if record["load"] > 0.5 else ""
        line = (
            f"{record['date']}, threads: {record['threads']}, {machine['cpu']} ({machine['cores']} cores, "
            f"{machine['instructions']}), {machine['memory_gb']} GB, {machine['system']}, "
            f"Python {versions['python']}, torch {versions['torch']}.{kind}{busy}"
        )
        names.setdefault(line, []).append(name)
    return [
        *(f"Not run: {reason}" for reason in dict.fromkeys(reasons)),
        *(f"{', '.join(those)}: {line}" for line, those in names.items()),
    ]


def text_table(records: Records) -> str:
    """The aligned table for a terminal."""
    lines = [HEADER, *all_cells(records)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*table, "", *notes(records)])


def markdown_table(records: Records) -> str:
    """The same table for the book."""
    lines = [HEADER, ["---"] * len(HEADER), *all_cells(records)]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*table, "", *(f"- {note}" for note in notes(records))])


def page_with_table(page: str, records: Records) -> str:
    """The page with its table replaced; everything outside the two markers stays."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page must hold each marker once: {BEGIN} and {END}")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{markdown_table(records)}\n\n{END}{after}"


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """What earlier runs left in a file, by benchmark; nothing where there is no file."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text("utf-8"))
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} has format {content.get('format')}, not {FORMAT}: delete it")
    records: dict[str, dict[str, Any]] = content["benchmarks"]
    return records


def write_records(path: Path, records: Records) -> None:
    """Write all records to a file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "benchmarks": records}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", "utf-8")
