"""The limits of a submission, and the watch over it from outside the box."""

import contextlib
import os
import selectors
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import NamedTuple

import psutil

POLL = 0.05
MB = 1_000_000
LAST_LINE = b'{"done": true}\n'  # of a result that is complete


@dataclass(frozen=True)
class Limits:
    """What one submission may use."""

    wall: float = 60.0  # seconds, all of it
    cpu: float = 30.0  # seconds of processor time, all processes together
    cell: float = 10.0  # seconds, one cell
    task: float = 5.0  # seconds, calls of a group; five of these fit into the processor time
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


def watch(process: "subprocess.Popen[bytes]", limits: Limits, stop: threading.Event) -> Outcome:
    """Follow a run until it finishes or exceeds a limit; the process may still be alive afterwards."""
    assert process.stdout is not None and process.stderr is not None
    start, looked = time.monotonic(), 0.0
    result, errors, num_output, problem = bytearray(), b"", 0, ""
    with selectors.DefaultSelector() as selector:
        for pipe in (process.stdout, process.stderr):
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and not problem and not result.endswith(LAST_LINE):
            for key, _ in selector.select(POLL):
                data = os.read(key.fd, 65_536)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    result += data
                else:
                    num_output += len(data)
                    errors = (errors + data)[-2_000:]
            seconds = time.monotonic() - start
            if len(result) > limits.result:
                problem = "result"
            elif num_output > limits.output:
                problem = "output"
            elif stop.is_set():
                problem = "stopped"
            elif seconds > limits.wall:
                problem = "timeout"
            elif seconds >= looked + POLL:
                looked = seconds
                memory, processor = tree_usage(process.pid, limits.memory)
                problem = "memory" if memory > limits.memory else "timeout" if processor > limits.cpu else ""
    if not problem and not result.endswith(LAST_LINE):
        problem = "ended"
    return Outcome(bytes(result), problem, time.monotonic() - start, errors.decode(errors="replace"))


def tree_usage(pid: int, limit: int) -> tuple[int, float]:
    """Return memory (bytes) and processor time (seconds) of a process and its descendants.

    Shared memory is counted once per process.  If that sum exceeds `limit`, shared memory is divided
    among the processes instead, which takes longer to find out.
    """
    try:
        first = psutil.Process(pid)
        processes = [first, *first.children(recursive=True)]
    except psutil.Error:
        return 0, 0.0
    memory, processor = 0, 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            processor += sum(process.cpu_times()[:4])  # those of children that have ended, too
            memory += process.memory_info().rss
    return (memory if memory <= limit else sum(map(_memory_without_others, processes))), processor


def _memory_without_others(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        try:
            return int(process.memory_full_info().pss)
        except psutil.AccessDenied:
            return int(process.memory_info().rss)
    return 0
