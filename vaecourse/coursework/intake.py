"""Reads what was handed in: regular files of bounded size, as data; nothing of it runs here.

The expected layout is nbgrader's, ``SUBMITTED/<student>/<psN>/<psN>.ipynb``.  A zip archive with the
notebook in it, as learning platforms provide, is read without unpacking it to the disk.
"""

import errno
import hashlib
import io
import json
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_FILE = 20_000_000  # bytes, before outputs are dropped
MAX_SOURCE = 1_000_000  # characters, of all cells together
MAX_CELLS = 500
MAX_FILES = 100
ASSIGNMENT = re.compile(r"ps[1-9][0-9]?")
MAX_NAME = 100
IN_NAMES = " _.@+-'"  # beside letters, digits, and the marks above letters


class UnreadableError(ValueError):
    """A submission that cannot be graded; the message is for the student."""


class Cell(NamedTuple):
    """What is kept of a cell: no outputs, no attachments, and only two facts of its metadata."""

    cell_type: str
    source: str
    grade_id: str | None
    is_locked: bool


class Submission(NamedTuple):
    """A student's notebook, read or not.

    `problem` is empty, or the reason why there are no cells; `remark` is what else the student and
    the instructor should know.
    """

    student: str
    assignment: str
    cells: tuple[Cell, ...]
    digest: str
    problem: str = ""
    remark: str = ""


def submission_folders(submitted: Path) -> Iterator[tuple[str, str]]:
    """Yield student and assignment of every submission in a folder, in order; see also `left_out`."""
    return ((student, name) for student, name, is_submission in _names(submitted) if is_submission)


def left_out(submitted: Path) -> list[str]:
    """Return the names in a folder that are not submissions, except those that start with a dot."""
    found = [(student, name) for student, name, is_submission in _names(submitted) if not is_submission]
    shown = [f"{student}/{name}" if name else student for student, name in found]
    return [repr(path)[1:-1] for path in shown if not path.rpartition("/")[2].startswith(".")]


def _names(submitted: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield a student, a name in the student's folder, and whether that is a submission.

    An entry that is not a student's folder, or that cannot be read, has an empty second name.
    """
    for outer in _entries(submitted):
        is_open = outer.is_dir(follow_symlinks=False) and os.access(outer.path, os.R_OK | os.X_OK)
        if not is_open or not is_student(outer.name):
            yield outer.name, "", False
            continue
        for inner in _entries(outer.path):
            # a link counts as a submission, so that the student is told that it cannot be read
            is_folder = inner.is_dir(follow_symlinks=False) or inner.is_symlink()
            yield outer.name, inner.name, is_folder and ASSIGNMENT.fullmatch(inner.name) is not None


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    return sorted(os.scandir(folder), key=lambda entry: entry.name)


def is_student(name: str) -> bool:
    """Whether a folder's name can be a student's: letters, digits and a few harmless signs.

    The first character must be a letter, a digit or an underscore.
    """
    allowed = all(unicodedata.category(c)[0] in "LMN" or c in IN_NAMES for c in name)
    begins_well = name[0].isalnum() or name[0] == "_"
    return allowed and begins_well and len(name) <= MAX_NAME and name == name.strip()


def read_submission(submitted: Path, student: str, assignment: str) -> Submission:
    """Return a student's submission, with the reason instead of cells if it cannot be read.

    Nothing that a student hands in makes this function raise.
    """
    content, remark, problem = b"", "", ""
    cells: tuple[Cell, ...] = ()
    try:
        content, remark = _content(submitted, student, assignment)
        cells = tuple(read_cells(content))
    except UnreadableError as error:
        problem, remark = str(error), ""
    digest = hashlib.sha256(content or problem.encode()).hexdigest()
    return Submission(student, assignment, cells, digest, problem, remark)


def _content(submitted: Path, student: str, assignment: str) -> tuple[bytes, str]:
    """Return the bytes of the notebook, and a remark if it was not quite where it should be."""
    folder = os.open(submitted, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in (student, assignment):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
        wanted = f"{assignment}.ipynb"
        if len(names) > MAX_FILES:
            raise UnreadableError(f"there are more than {MAX_FILES} files beside the notebook")
        if wanted in names:
            return _read_regular(folder, wanted), ""
        for ending in (".ipynb", ".zip"):
            if len(found := [name for name in names if name.lower().endswith(ending)]) == 1:
                content = _read_regular(folder, found[0])
                content = content if ending == ".ipynb" else _from_zip(content, wanted)
                return content, f"handed in as {_printable(found[0])} instead of {wanted}"
        seen = ", ".join(_printable(name) for name in names[:5]) or "nothing"
        raise UnreadableError(f"there is no {wanted} in the folder, but {seen}")
    except OSError as error:
        raise UnreadableError(f"it cannot be read: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(folder)


def _read_regular(folder: int, name: str) -> bytes:
    """Return the bytes of a regular file, without following a link or waiting for a pipe."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        kind = "a link" if error.errno == errno.ELOOP else os.strerror(error.errno or 0)
        raise UnreadableError(f"{_printable(name)} is not a file that can be read: {kind}") from error
    with os.fdopen(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise UnreadableError(f"{_printable(name)} is not a regular file")
        content = opened.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise UnreadableError(f"{_printable(name)} has more than {MAX_FILE // 10**6} MB: clear its outputs")
    return content


def _from_zip(content: bytes, wanted: str) -> bytes:
    """Return the notebook in an archive, among several the one with this name, without unpacking to disk."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = [item for item in archive.infolist() if _is_notebook(item.filename)]
            named = [item for item in found if item.filename.rpartition("/")[2] == wanted]
            if len(chosen := named or found) != 1:
                raise UnreadableError(f"the archive holds {len(chosen)} notebooks, and one is expected")
            if chosen[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # other methods unpack without a bound
                raise UnreadableError("the archive is packed in an unusual way")
            with archive.open(chosen[0]) as opened:  # its stated size may be a lie, so we count
                notebook = opened.read(MAX_FILE + 1)
    except UnreadableError:
        raise
    except Exception as error:  # damaged archives raise errors of many kinds
        raise UnreadableError(f"the archive cannot be read ({type(error).__name__})") from error
    if len(notebook) > MAX_FILE:
        raise UnreadableError(f"{wanted} has more than {MAX_FILE // 10**6} MB when unpacked")
    return notebook


def _is_notebook(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.endswith(".ipynb") and not name.startswith(".") and "__MACOSX" not in path


def read_cells(content: bytes) -> Iterator[Cell]:
    """Yield the cells of a notebook; UnreadableError says why it is not a notebook of format 4."""
    try:
        notebook = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UnreadableError("it is not a notebook: not JSON") from error
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or notebook.get("nbformat") != 4:
        raise UnreadableError("it is not a notebook of format 4: open it in Jupyter and save it again")
    if len(cells) > MAX_CELLS:
        raise UnreadableError(f"it has {len(cells)} cells, more than {MAX_CELLS}")
    total = 0
    for cell in cells:
        source = _source(cell)
        total += len(source)
        if total > MAX_SOURCE:
            raise UnreadableError(f"its cells hold more than {MAX_SOURCE} characters")
        metadata = cell.get("metadata")
        entry = metadata.get("nbgrader") if isinstance(metadata, dict) else None
        entry = entry if isinstance(entry, dict) else {}
        grade_id = entry["grade_id"] if isinstance(entry.get("grade_id"), str) else None
        is_locked = entry.get("locked") is True and entry.get("solution") is not True
        yield Cell(str(cell.get("cell_type")), source, grade_id, is_locked)


def _source(cell: Any) -> str:
    source = cell.get("source") if isinstance(cell, dict) else None
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        raise UnreadableError("one of its cells has no source")
    # half of a surrogate pair is valid JSON, but cannot be written as text
    return source.encode("utf-8", "replace").decode("utf-8")


def _printable(name: str) -> str:
    return repr(name[:80])[1:-1]
