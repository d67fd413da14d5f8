"""Runs the runner with student code in a box: no network, no files, limits on everything it uses.

The box is made by bubblewrap.  Inside are the system's programs and libraries and this Python
environment, all read-only, and 64 MB of scratch in memory; the package `vaecourse`, which holds
reference answers, is hidden.  Results come back as at most 1 MB of text on a pipe, so that no file
and no link can come back.  Time, memory of the whole tree of processes, and output are watched
from outside; the other limits are set inside before student code runs.
"""

import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from vaecourse._notebooks import THREAD_VARIABLES
from vaecourse.coursework.seccomp import seccomp_filter

RUNNER = Path(__file__).with_name("runner.py")
PACKAGE = Path(__file__).resolve().parent.parent
POLL = 0.05
FIRST_UID = 60_001  # the box of root runs as this user or one of the next, never as root
MB = 1_000_000


class SandboxError(RuntimeError):
    """No sandbox can be had here, or it does not hold what it must."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; nothing was run (--trust-submissions would run it without a sandbox)")


@dataclass(frozen=True)
class Limits:
    """What one submission may use."""

    wall: float = 60.0  # seconds, all of it
    cpu: float = 30.0  # seconds of processor time, all processes together
    cell: float = 10.0  # seconds, one cell
    task: float = (
        5.0  # seconds, calls of a task that share objects; five of these fit into the processor time
    )
    memory: int = 2_147_483_648  # bytes, all processes together
    address_space: int = 17_179_869_184  # bytes, one process
    processes: int = 64
    scratch: int = 64 * MB
    output: int = 8 * MB
    result: int = 1 * MB


class Outcome(NamedTuple):
    """What came out of the box.

    `problem` is empty, or the name of the limit that ended the run (``timeout``, ``memory``, ``output``,
    ``result``), ``stopped``, or ``ended`` if the runner ended before it had answered everything.
    `errors` is the end of what was printed.
    """

    result: bytes
    problem: str
    seconds: float
    errors: str


def is_root() -> bool:
    """Whether this process may choose a user for the box."""
    return os.geteuid() == 0


def environment_folders() -> list[Path]:
    """Return the folders that Python and its libraries live in, without those below another one."""
    found = {Path(sys.prefix), Path(sys.base_prefix)}
    found |= {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    if site.ENABLE_USER_SITE and site.USER_SITE:
        found.add(Path(site.USER_SITE))
    existing = sorted(path.resolve() for path in found if path.exists() and not path.is_relative_to("/usr"))
    return [path for path in existing if not any(path != p and path.is_relative_to(p) for p in existing)]


def box_command(slot: int, scratch: int, filter_file: int) -> list[str]:
    """Return the command that runs the runner in a box.

    `slot` numbers the boxes of the same moment; `filter_file` is the descriptor of a system call filter.
    """
    for tool in ["bwrap", *(["setpriv", "unshare"] if is_root() else [])]:
        if shutil.which(tool) is None:
            raise SandboxError(f"{tool} is not installed (Debian: apt-get install bubblewrap util-linux)")
    binds = [(path, path) for path in environment_folders()] + [(RUNNER, Path("/runner.py"))]
    outer: list[str] = []
    if is_root():
        # The box's user may not be allowed to enter the folders above ours: root shows them elsewhere.
        stages = [(path, Path(f"/mnt/{number}"), target) for number, (path, target) in enumerate(binds)]
        shown = [word for path, stage, _ in stages for word in ("--ro-bind", str(path), str(stage))]
        uid = str(FIRST_UID + slot)
        # bwrap, as another user, would not die with us: a process namespace around it does
        outer = [
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
            *("bwrap", "--dev-bind", "/", "/", "--size", "65536", "--tmpfs", "/mnt"),
            *(*shown, "--die-with-parent"),
            *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"),
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
        *(word for name, value in _variables().items() for word in ("--setenv", name, value)),
        *(("--seccomp", str(filter_file)) if seccomp_filter() else ()),
        *("--remount-ro", "/", "--", sys.executable, "-s", "/runner.py"),
    ]


def _system_folder(name: str) -> list[str]:
    """Return the options for /bin and the like: links into /usr, or folders on older systems."""
    path = Path("/") / name
    if path.is_symlink():
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []


def _hide_package(shown: Sequence[Path]) -> list[str]:
    """Return the options that lay an empty folder over the package where it is inside what is shown."""
    visible = any(PACKAGE.is_relative_to(path) for path in [*shown, Path("/usr")])
    return ["--size", "4096", "--tmpfs", str(PACKAGE), "--remount-ro", str(PACKAGE)] if visible else []


def _variables() -> dict[str, str]:
    """Return the environment of student code, all of it."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin",
        "HOME": "/tmp/box",
        "MPLBACKEND": "Agg",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        **dict.fromkeys(THREAD_VARIABLES, "1"),
    }


@contextlib.contextmanager
def _start(trusted: bool, slot: int, limits: Limits) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the runner, in a box or, if it is trusted, in a folder of its own; end it in any case."""
    with contextlib.ExitStack() as stack:
        if trusted:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vaecourse-"))
            files: list[int] = []
            command = [sys.executable, "-s", str(RUNNER)]
            variables = {**os.environ, **_variables(), "HOME": folder}
        else:
            filter_file = stack.enter_context(_pipe_with(seccomp_filter()))
            command, files = box_command(slot, limits.scratch, filter_file), [filter_file]
            # not ours: the first process of the box shows what it was started with
            folder, variables = "/", {"PATH": os.environ.get("PATH", os.defpath)}
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
        try:
            yield process
        finally:
            _end(process)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None and not pipe.closed:
                    pipe.close()


@contextlib.contextmanager
def _pipe_with(data: bytes) -> Iterator[int]:
    """Provide a descriptor from which a few bytes can be read."""
    reading, writing = os.pipe()
    try:
        os.write(writing, data)
        os.close(writing)
        yield reading
    finally:
        os.close(reading)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a run: the box dies with its first process, a trusted run with its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def run(
    job: bytes,
    *,
    limits: Limits | None = None,
    slot: int = 0,
    trusted: bool = False,
    stop: threading.Event | None = None,
) -> Outcome:
    """Run a job in a box and return what it said.

    Parameters
    ----------
    job : bytes
        JSON lines as `vaecourse.coursework.runner` reads them.
    limits : Limits, optional
        What it may use; the default limits if left out.
    slot : int, default 0
        Number of the box among those that run at the same moment; boxes of root run as different users.
    trusted : bool, default False
        Run without a box, as this user.  Only for code that is known.
    stop : threading.Event, optional
        Ends the run when it is set.

    Returns
    -------
    Outcome
        The result as it came, which nobody has looked at yet.

    Raises
    ------
    SandboxError
        If the tools that make a box are missing.
    """
    limits = limits or Limits()
    start = time.monotonic()
    with _start(trusted, slot, limits) as process:
        watch = _Watch(process, limits, stop or threading.Event())
        feeder = threading.Thread(target=_feed, args=(process, job), daemon=True)
        feeder.start()
        problem = watch.follow(start)
    feeder.join()
    if not problem and not watch.result.endswith(b'{"done": true}\n'):
        problem = "ended"
    errors = watch.errors.decode(errors="replace")
    return Outcome(bytes(watch.result), problem, time.monotonic() - start, errors)


def _feed(process: "subprocess.Popen[bytes]", job: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ValueError):  # it may end before it has read all
        process.stdin.write(job)
        process.stdin.close()


class _Watch:
    """Reads what a run says and looks at what it uses."""

    def __init__(self, process: "subprocess.Popen[bytes]", limits: Limits, stop: threading.Event) -> None:
        self.process, self.limits, self.stop = process, limits, stop
        self.result, self.errors, self.num_output = bytearray(), b"", 0

    def follow(self, start: float) -> str:
        """Return the name of the limit that was passed, or nothing when the run has ended by itself."""
        assert self.process.stdout is not None and self.process.stderr is not None
        with selectors.DefaultSelector() as selector:
            for pipe in (self.process.stdout, self.process.stderr):
                selector.register(pipe, selectors.EVENT_READ)
            looked = start
            while selector.get_map():
                for key, _ in selector.select(POLL):
                    data = os.read(key.fd, 65_536)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is self.process.stdout:
                        self.result += data
                    else:
                        self.num_output += len(data)
                        self.errors = (self.errors + data)[-2_000:]
                if len(self.result) > self.limits.result:
                    return "result"
                if self.num_output > self.limits.output:
                    return "output"
                if (now := time.monotonic()) - looked >= POLL:
                    looked = now
                    if problem := self._look(now - start):
                        return problem
                if self.result.endswith(b'{"done": true}\n'):
                    return ""
        return ""

    def _look(self, seconds: float) -> str:
        if self.stop.is_set():
            return "stopped"
        if seconds > self.limits.wall:
            return "timeout"
        memory, processor = tree_usage(self.process.pid, self.limits.memory)
        if memory > self.limits.memory:
            return "memory"
        return "timeout" if processor > self.limits.cpu else ""


def tree_usage(pid: int, limit: int) -> tuple[int, float]:
    """Return memory in bytes and processor time in seconds of a process and all below it.

    Memory that processes share is counted with each of them; if the sum passes `limit`, it is looked
    at more closely, which takes longer, and shared memory is divided.
    """
    try:
        processes = [psutil.Process(pid)]
        processes += processes[0].children(recursive=True)
    except psutil.Error:
        return 0, 0.0
    memory, processor, exact = 0, 0.0, 0
    for process in processes:
        try:
            times = process.cpu_times()
            processor += sum(times[:4])  # those of children that have ended, too
            memory += process.memory_info().rss
        except psutil.Error:
            continue
    if memory <= limit:
        return memory, processor
    for process in processes:
        try:
            exact += process.memory_full_info().pss
        except psutil.AccessDenied:
            exact += process.memory_info().rss
        except psutil.Error:
            continue
    return exact, processor


PROBE = """
import importlib.util, mmap, os, socket
from pathlib import Path

def can(action):
    try:
        action()
    except Exception:
        return False
    return True

def write(path):
    Path(path).write_text("x")

def probe():
    found = []
    if can(lambda: importlib.util.find_spec("vaecourse.coursework").origin):
        found.append("the package is visible")
    if any(Path(path).exists() for path in {hidden!r}):
        found.append("files of this machine are visible")
    for path in ("/usr/vaecourse-probe", "/vaecourse-probe", "/dev/vaecourse-probe", "/dev/shm/../x"):
        if can(lambda: write(path)):
            found.append("it can write to " + path)
    if not can(lambda: write("/tmp/box/probe")):
        found.append("it cannot write to its scratch folder")
    if {{name for _, name in socket.if_nameindex()}} - {{"lo"}}:
        found.append("it sees a network")
    if can(lambda: mmap.mmap(-1, 4096)):
        found.append("it has memory that belongs to no process")
    if len([name for name in os.listdir("/proc") if name.isdigit()]) > 4:
        found.append("it sees processes of this machine")
    if os.getuid() == 0:
        found.append("it runs as root")
    seen = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            variables = Path("/proc", pid, "environ").read_bytes().split(bytes(1))
        except OSError:
            continue
        seen |= set(variables)
    if seen & {secrets!r}:
        found.append("it sees this environment")
    raise SystemExit("found " + ("; ".join(found) or "nothing") + ".")
"""


def self_test(slot: int = 0) -> None:
    """Look from inside at what the box must hold back.

    Raises
    ------
    SandboxError
        If there is no box, or if it holds back less than it must; the message says what.
    """
    hidden = [str(PACKAGE / "coursework" / "ps1.py"), "/etc/passwd", str(Path.home() / ".profile")]
    ours = {f"{name}={value}".encode() for name, value in os.environ.items() if name not in _variables()}
    limits = Limits(wall=30.0)
    job = {
        "cells": [["probe", PROBE.format(hidden=hidden, secrets=ours or {b"none"})]],
        "limits": asdict(limits),
    }
    call = {"id": 0, "group": "probe", "function": "probe"}
    lines = "".join(json.dumps(line) + "\n" for line in (job, call))
    outcome = run(lines.encode(), limits=limits, slot=slot)
    told = [json.loads(line) for line in outcome.result.splitlines() if b'"id": 0' in line]
    found = re.search(r"found (.*)\.", told[0].get("error", "")) if told else None
    if found is None:
        errors = outcome.errors.strip().splitlines()
        raise SandboxError(f"the sandbox does not start: {(errors or [outcome.problem])[-1]}")
    if found[1] != "nothing":
        raise SandboxError(f"the sandbox does not hold: {found[1]}")
