"""Runs in a box, as a student's cell would, and looks for holes in its walls."""

import importlib
import mmap
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn


def probe(hidden: list[str], secrets: list[str]) -> NoReturn:
    """Raise SystemExit with what was found: a hidden file, a secret of the environment, or a way out."""
    folders = ("/usr", "/", "/dev", "/dev/shm/..")
    facts = {
        "the package is visible": _can(lambda: importlib.import_module("vaecourse.coursework")),
        "files of this machine are visible": any(Path(path).exists() for path in hidden),
        **{f"it can write to {folder}": _can(partial(_write, folder)) for folder in folders},
        "it cannot write to its scratch folder": not _can(partial(_write, "/tmp/box")),
        "it sees a network": not {name for _, name in socket.if_nameindex()} <= {"lo"},
        "it has memory that belongs to no process": _can(lambda: mmap.mmap(-1, 4096)),
        "it sees processes of this machine": len(list(Path("/proc").glob("[0-9]*"))) > 4,
        "it runs as root": os.getuid() == 0,
        "it sees this environment": not _environments().isdisjoint(map(os.fsencode, secrets)),
    }
    raise SystemExit(f"found {'; '.join(fact for fact, is_true in facts.items() if is_true) or 'nothing'}.")


def _can(action: Callable[[], object]) -> bool:
    try:
        action()
    except Exception:
        return False
    return True


def _write(folder: str) -> None:
    Path(folder, "vaecourse-probe").write_text("x")


def _environments() -> set[bytes]:
    """Return the environment variables of all visible processes."""
    found = set[bytes]()
    for path in Path("/proc").glob("[0-9]*/environ"):
        if _can(path.read_bytes):
            found.update(path.read_bytes().split(b"\0"))
    return found
