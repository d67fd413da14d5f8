"""On what the benchmarks ran; nothing that tells one machine of a kind from another."""

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ["vaecourse", "torch", "numpy", "pythae", "pyro-ppl"]


def machine() -> dict[str, Any]:
    """Processor, vector instructions that torch uses, cores, memory and system."""
    return {
        "cpu": cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gb": memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def memory_gb() -> float | None:
    """Size of the memory in 10^9 bytes; None on Windows."""
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def load() -> float | None:
    """Processes that ran or waited to run in the last minute, on average; None on Windows."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def cpu_model() -> str:
    """Name of the processor, from Linux's own list where there is one."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text("utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Versions of Python and of all libraries that are measured; None where one is missing."""
    found = {"python": platform.python_version()}
    return found | {name: installed_version(name) for name in LIBRARIES}


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution."""
    names = {found.name for found in importlib.metadata.distributions()}
    return importlib.metadata.version(distribution) if distribution in names else None


def missing(*modules: str) -> str | None:
    """What to install so that these modules can be imported; None where nothing is missing."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    install = 'make bench, or pip install -c constraints.txt -e ".[bench]"'
    return f"{' and '.join(absent)} cannot be imported; to install: {install}"
