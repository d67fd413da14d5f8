"""What a submission may use, and the watch over it from outside of the box."""

import contextlib
import os
import selectors
import subprocess
import threading
import time
from dataclasses import dataclass

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


class Watch:
    """Reads what a run says, into `result` and the end of it into `errors`, and looks at what it uses."""

    def __init__(self, limits: Limits, stop: threading.Event) -> None:
        self.limits, self.stop = limits, stop
        self.result, self.errors, self.num_output = bytearray(), b"", 0
        self.start = time.monotonic()

    def seconds(self) -> float:
        """Return how long ago this was made."""
        return time.monotonic() - self.start

    def follow(self, process: "subprocess.Popen[bytes]") -> str:
        """Return the name of the limit that was passed, or nothing when the run has ended by itself."""
        assert process.stdout is not None and process.stderr is not None
        with selectors.DefaultSelector() as selector:
            for pipe in (process.stdout, process.stderr):
                selector.register(pipe, selectors.EVENT_READ)
            next_look = POLL
            while selector.get_map() and not self.result.endswith(LAST_LINE):
                for key, _ in selector.select(POLL):
                    data = os.read(key.fd, 65_536)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        self.result += data
                    else:
                        self.num_output += len(data)
                        self.errors = (self.errors + data)[-2_000:]
                if len(self.result) > self.limits.result:
                    return "result"
                if self.num_output > self.limits.output:
                    return "output"
                if self.seconds() >= next_look:
                    if problem := self._look(process.pid):
                        return problem
                    next_look = self.seconds() + POLL
        return ""

    def _look(self, pid: int) -> str:
        if self.stop.is_set():
            return "stopped"
        if self.seconds() > self.limits.wall:
            return "timeout"
        memory, processor = tree_usage(pid, self.limits.memory)
        if memory > self.limits.memory:
            return "memory"
        return "timeout" if processor > self.limits.cpu else ""


def tree_usage(pid: int, limit: int) -> tuple[int, float]:
    """Return memory in bytes and processor time in seconds of a process and all below it.

    Memory that processes share is counted with each of them; if the sum passes `limit`, it is looked
    at more closely, which takes longer, and shared memory is divided.
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
