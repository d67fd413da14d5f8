"""Runs student code in a box: no network, no files, limits on everything it uses.

The box is made by bubblewrap.  Inside are the system's programs and libraries, this Python
environment, and the files of this folder, all read-only, and 64 MB of scratch in memory; the package
`vaecourse`, which holds reference answers, is hidden.  Results come back as at most 1 MB of text on a
pipe, so that no file and no link can come back.  Time, memory of the whole tree of processes, and
output are watched from outside; the other limits are set inside before student code runs.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vaecourse.coursework.box.filter import seccomp_filter
from vaecourse.coursework.box.watching import MB, Limits, Outcome, watch

BOX = Path(__file__).resolve().parent
PACKAGE = BOX.parents[1]
INSIDE = Path("/grader/box")  # where the files of this folder are in the box
RUNNER = [sys.executable, "-s", "-P", "-m", "box.runner"]  # found through PYTHONPATH
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
FIRST_UID = 60_001  # the box of root runs as this user or one of the next, never as root


class SandboxError(RuntimeError):
    """There is no sandbox here, or it has a hole."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; nothing was run (--trust-submissions would run it without a sandbox)")


def is_root() -> bool:
    """Whether this process may choose a user for the box."""
    return os.geteuid() == 0


def environment_folders() -> list[Path]:
    """Return the outermost folders that hold Python and its libraries, under each name that leads there."""
    found = {Path(sys.prefix), Path(sys.base_prefix)}
    found |= {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    if site.ENABLE_USER_SITE and site.USER_SITE:
        found.add(Path(site.USER_SITE))
    there = {name for path in found if path.exists() for name in (path.absolute(), path.resolve())}
    existing = sorted(path for path in there if not path.is_relative_to("/usr"))
    return [path for path in existing if not any(path != p and path.is_relative_to(p) for p in existing)]


def box_command(slot: int, scratch: int, filter_file: int) -> list[str]:
    """Return the command that runs the runner in a box.

    `slot` numbers the boxes that run at the same time; `filter_file` is the file descriptor of the filter.
    """
    for tool in ["bwrap", *(["setpriv", "unshare"] if is_root() else [])]:
        if shutil.which(tool) is None:
            raise SandboxError(f"{tool} is not installed (Debian: apt-get install bubblewrap util-linux)")
    variables = _variables(str(INSIDE.parent))
    binds = [(path, path) for path in environment_folders()] + [(BOX, INSIDE)]
    outer: list[str] = []
    if is_root():
        # The box's user may not be allowed to enter the folders above ours: root shows them elsewhere.
        stages = [(path, Path(f"/mnt/{number}"), target) for number, (path, target) in enumerate(binds)]
        uid = str(FIRST_UID + slot)
        # bwrap, as another user, would not die with us: a process namespace around it does
        outer = [
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
            *("bwrap", "--dev-bind", "/", "/", "--size", "65536", "--tmpfs", "/mnt"),
            *(word for path, stage, _ in stages for word in ("--ro-bind", str(path), str(stage))),
            *("--die-with-parent", "setpriv", f"--reuid={uid}", f"--regid={uid}"),
            *("--clear-groups", "--no-new-privs"),
        ]
        binds = [(stage, target) for _, stage, target in stages]
    return [
        *outer,
        *("bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"),
        *("--new-session", "--clearenv", "--hostname", "box", "--cap-drop", "ALL"),
        *("--ro-bind", "/usr", "/usr"),
        *(word for name in ("bin", "sbin", "lib", "lib32", "lib64") for word in _system_folder(name)),
        *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"),
        *("--dev-bind", "/dev/null", "/dev/zero"),  # mapped, it would be memory that belongs to no process
        *("--size", str(16 * MB), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
        *("--size", str(scratch), "--tmpfs", "/tmp", "--dir", "/tmp/box", "--chdir", "/tmp/box"),
        *(word for source, target in binds for word in ("--ro-bind", str(source), str(target))),
        *_hide_package([target for _, target in binds]),
        *(word for pair in variables.items() for word in ("--setenv", *pair)),
        *(("--seccomp", str(filter_file)) if seccomp_filter() else ()),
        *("--remount-ro", "/", "--", *RUNNER),
    ]


def _system_folder(name: str) -> list[str]:
    """Return the options for /bin and the like, which are links into /usr, or folders on older systems."""
    path = Path("/") / name
    if path.is_symlink():
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []


def _hide_package(shown: Sequence[Path]) -> list[str]:
    """Return the options that cover the package with an empty folder wherever it would be visible."""
    roots = {path: path.resolve() for path in [*shown, Path("/usr")]}  # what a link is called, and its target
    places = [
        str(path / PACKAGE.relative_to(root)) for path, root in roots.items() if PACKAGE.is_relative_to(root)
    ]
    return [word for place in places for word in ("--size", "4096", "--tmpfs", place, "--remount-ro", place)]


def _variables(path: str) -> dict[str, str]:
    """Return the whole environment of student code; the runner is found on this path."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin",
        "PYTHONPATH": path,
        "HOME": "/tmp/box",
        "MPLBACKEND": "Agg",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        **dict.fromkeys(THREAD_VARIABLES, "1"),
    }


def run(
    cells: Sequence[tuple[str, str]],
    calls: Sequence[dict[str, Any]] = (),
    *,
    limits: Limits | None = None,
    slot: int = 0,
    trusted: bool = False,
    stop: threading.Event | None = None,
) -> Outcome:
    """Run cells, then calls (see `runner`), in a box, and return what came out, unchecked.

    `slot` numbers the boxes that run at the same time: those of root run as different users.  A
    trusted run has no box and may do whatever this user may.  Setting `stop` ends the run.
    SandboxError names a missing tool.
    """
    limits = limits or Limits()
    with contextlib.ExitStack() as stack:
        if trusted:
            # without a namespace of its own, all processes of this user would count
            files, limits = [], replace(limits, processes=0)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vaecourse-"))
            path = os.pathsep.join(filter(None, [str(BOX.parent), os.environ.get("PYTHONPATH")]))
            command, variables = RUNNER, {**os.environ, **_variables(path), "HOME": folder}
        else:
            reading, writing = os.pipe()
            stack.callback(os.close, reading)
            with os.fdopen(writing, "wb") as filter_file:
                filter_file.write(seccomp_filter())
            command, files = box_command(slot, limits.scratch, reading), [reading]
            # not ours: the first process of the box shows what it was started with
            folder, variables = "/", {"PATH": os.environ.get("PATH", os.defpath)}
        lines = [{"cells": cells, "limits": asdict(limits)}, *calls]
        job = "".join(json.dumps(line) + "\n" for line in lines).encode()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=variables,
            pass_fds=files,
            start_new_session=True,
        )
        stack.callback(_end, process)
        feeder = threading.Thread(target=_feed, args=(process, job), daemon=True)
        feeder.start()
        outcome = watch(process, limits, stop or threading.Event())
    feeder.join()
    return outcome


def _feed(process: "subprocess.Popen[bytes]", job: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # it may end before it has read all
        process.stdin.write(job)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a run: a box dies with its first process, a trusted run with its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def self_test(slot: int = 0) -> None:
    """Check from inside that a box holds; raise SandboxError if it has a hole, or does not start."""
    hidden = [str(PACKAGE / "coursework" / "tasks" / "ps1.py"), "/etc/passwd", str(Path.home() / ".profile")]
    ours = [f"{name}={value}" for name, value in os.environ.items() if name not in _variables("")]
    cell = ("probe", (BOX / "probe.py").read_text("utf-8"))
    call = {"id": 0, "task": "probe", "group": "", "function": "probe", "args": [hidden, ours]}
    outcome = run([cell], [call], limits=Limits(wall=30.0), slot=slot)
    found = re.search(r"SystemExit: found (.*)\.", outcome.result.decode())
    if found is None:
        errors = outcome.errors.strip().splitlines()
        raise SandboxError(f"the sandbox does not start: {(errors or [outcome.problem])[-1]}")
    if found[1] != "nothing":
        raise SandboxError(f"the sandbox does not hold: {found[1]}")
