"""Makes student notebooks from the instructor's, with nbgrader's own steps."""

import re
from pathlib import Path
from typing import Any

MARKER = re.compile("(?:BEGIN|END) (?:SOLUTION|MARK SCHEME|HIDDEN)", re.IGNORECASE)


def source_notebooks(source: Path) -> list[Path]:
    """Return the instructor's notebooks below a folder, ``psN/psN.ipynb``, in order."""
    found = [path for path in sorted(source.glob("ps*/ps*.ipynb")) if path.stem == path.parent.name]
    if not found:
        raise ValueError(f"there is no psN/psN.ipynb below {source}; name the folder with --source")
    return found


def release(source: Path, target: Path) -> list[Path]:
    """Write the student version of every problem set, ``psN/psN.ipynb``, and return the files.

    The same source gives the same bytes.
    """
    written = []
    for path in source_notebooks(source):
        text = student_version(path)
        file = target / path.stem / path.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
        written.append(file)
    return written


def student_version(path: Path) -> str:
    """Return the text of an instructor's notebook without solutions, model answers or outputs.

    ValueError says which cell has no marked solution, or which markers would be left.
    """
    import nbformat
    from nbgrader import preprocessors as steps

    notebook: Any = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        entry = nbgrader_entry(cell)
        if entry.get("solution") and "BEGIN SOLUTION" not in cell.source:
            raise ValueError(f"{path.name}: cell {entry['grade_id']} has no ### BEGIN SOLUTION")
        cell.metadata = {"nbgrader": dict(entry)} if entry else {}
    for step in (
        steps.ClearSolutions(),
        steps.LockCells(),
        steps.ClearOutput(),
        steps.ComputeChecksums(),
        steps.CheckCellMetadata(),
    ):
        notebook, _ = step.preprocess(notebook, {})
    text: str = nbformat.writes(notebook) + "\n"
    if left := MARKER.findall(text):
        raise ValueError(f"{path.name}: the student's version would still hold {', '.join(left)}")
    return text


def nbgrader_entry(cell: Any) -> dict[str, Any]:
    """Return what nbgrader knows about a cell, which may be nothing."""
    found: dict[str, Any] = cell.metadata.get("nbgrader", {})
    return found
