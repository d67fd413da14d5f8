"""On what the benchmarks ran; nothing that tells one machine of a kind from another."""

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

LIBRARIES = ["vaecourse", "torch", "numpy", "pythae", "pyro-ppl"]


def machine() -> dict[str, Any]:
    """Processor, vector instructions that torch uses, cores, memory in 10^9 bytes, and system."""
    return {
        "cpu": cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def load() -> float:
    """Processes that ran or waited to run in the last minute, on average."""
    return round(psutil.getloadavg()[0], 2)


def cpu_model() -> str:
    """Name of the processor, from Linux's own list where there is one."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text("utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Versions of Python and of all libraries that are measured; None where one is missing."""
    installed = {found.name: found.version for found in importlib.metadata.distributions()}
    return {"python": platform.python_version(), **{name: installed.get(name) for name in LIBRARIES}}


def missing(*modules: str) -> str | None:
    """What to install so that these modules can be imported; None where nothing is missing."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    install = 'make bench, or pip install -c constraints.txt -e ".[bench]"'
    return f"{' and '.join(absent)} cannot be imported; to install: {install}"
