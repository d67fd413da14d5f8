"""Makes student notebooks out of the instructor's, with nbgrader's own steps."""

import re
from pathlib import Path
from typing import Any

MARKERS = (
    "BEGIN SOLUTION",
    "END SOLUTION",
    "BEGIN MARK SCHEME",
    "END MARK SCHEME",
    "BEGIN HIDDEN",
    "END HIDDEN",
)


def source_notebooks(source: Path) -> list[Path]:
    """Return the instructor's notebooks below a folder, ``psN/psN.ipynb``, in order.

    Parameters
    ----------
    source : pathlib.Path
        The folder with a folder per problem set.

    Returns
    -------
    list of pathlib.Path
        Their files.

    Raises
    ------
    ValueError
        If there are none.
    """
    found = [path for path in sorted(source.glob("ps*/ps*.ipynb")) if path.stem == path.parent.name]
    if not found:
        raise ValueError(f"there is no psN/psN.ipynb below {source}; name the folder with --source")
    return found


def release(source: Path, target: Path) -> list[Path]:
    """Write the student version of every problem set and return the files.

    The same source gives the same bytes.

    Parameters
    ----------
    source : pathlib.Path
        The folder of instructor notebooks, ``psN/psN.ipynb``.
    target : pathlib.Path
        Where ``psN/psN.ipynb`` are written; made if missing.

    Returns
    -------
    list of pathlib.Path
        What was written.

    Raises
    ------
    ValueError
        If there are no notebooks, or one would still show a solution.
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
    """Return the text of the student's version of an instructor notebook.

    Parameters
    ----------
    path : pathlib.Path
        The instructor's notebook.

    Returns
    -------
    str
        A notebook in which solutions, model answers and outputs are replaced or gone.

    Raises
    ------
    ValueError
        If a solution cell has no marked solution, or a marker would be left.
    """
    import nbformat
    from nbgrader import preprocessors as steps

    notebook: Any = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if _entry(cell).get("solution") and MARKERS[0] not in cell.source:
            raise ValueError(f"{path.name}: cell {_entry(cell)['grade_id']} has no ### {MARKERS[0]}")
        cell.metadata = {"nbgrader": dict(_entry(cell))} if _entry(cell) else {}
    for step in (
        steps.ClearSolutions(),
        steps.LockCells(),
        steps.ClearOutput(),
        steps.ComputeChecksums(),
        steps.CheckCellMetadata(),
    ):
        notebook, _ = step.preprocess(notebook, {})
    text: str = nbformat.writes(notebook) + "\n"
    if left := [marker for marker in MARKERS if re.search(marker, text, re.IGNORECASE)]:
        raise ValueError(f"{path.name}: the student's version would still hold {', '.join(left)}")
    return text


def _entry(cell: Any) -> dict[str, Any]:
    found: dict[str, Any] = cell.metadata.get("nbgrader", {})
    return found
