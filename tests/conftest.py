"""Fixtures and settings that every test file shares."""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import settings
from playwright.sync_api import Browser
from torch import Tensor

from tests.browser import SITE, launch
from tests.serving import serve
from vaecourse.coursework.sandbox import SandboxError, self_test
from vaecourse.datasets import digits, mnist

# The same examples on every machine: a property test that fails, fails everywhere.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=200, database=None)
# Many fresh examples, for the nightly job.
settings.register_profile("nightly", deadline=None, max_examples=10_000, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

mpmath.mp.dps = 60  # digits; enough for exp(t) - 1 - t at t = 1e-15, where 30 of them cancel


class Spectrum(NamedTuple):
    """Mean and eigenvalues (descending) of a data set, and a small data set that has exactly these."""

    mean: Tensor
    eigenvalues: Tensor
    stand_in: Tensor


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_slow = pytest.mark.skip(reason="a sweep for the nightly job: run it with -m slow")
    for item in items:
        if "slow" in item.keywords and "slow" not in config.option.markexpr:
            item.add_marker(skip_slow)


@pytest.fixture(scope="session")
def accelerator() -> torch.device:
    """The machine's CUDA or MPS device; the test is skipped where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    pytest.skip("neither CUDA nor MPS is available")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The machine's Chromium."""
    with launch() as browser:
        yield browser


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Where the built site is served."""
    with serve(SITE) as address:
        yield address


@pytest.fixture(scope="session")
def sandbox() -> None:
    """Tests that ask for it are skipped where there is no sandbox, and fail where there has to be one."""
    try:
        self_test()
    except SandboxError as error:
        if os.environ.get("CI"):
            pytest.fail(f"this machine has to have a sandbox: {error}")
        pytest.skip(f"no sandbox: {error}")


@pytest.fixture(scope="session")
def ulps() -> Callable[[Tensor, mpmath.mpf], float]:
    """Distance of a tensor's one value from the truth, in units in the last place of its dtype."""

    def distance(value: Tensor, truth: mpmath.mpf) -> float:
        dtype = {torch.float32: np.float32, torch.float64: np.float64}[value.dtype]
        unit = np.spacing(dtype(abs(float(truth))))  # of a subnormal number: the smallest one
        return float(abs(mpmath.mpf(value.item()) - truth) / mpmath.mpf(float(unit)))

    return distance


@pytest.fixture(scope="session")
def digits_x() -> Tensor:
    """The small digits, scaled by 16, float64 (1797, 64)."""
    return digits()[0].flatten(1).double() / 16


@pytest.fixture(scope="session")
def mnist_train() -> Tensor:
    """Training images of MNIST, uint8 (60000, 28, 28)."""
    return mnist("train")[0]


@pytest.fixture(scope="session")
def mnist_spectrum(mnist_train: Tensor) -> Spectrum:
    """Principal components of MNIST / 255, from the uncentred second moment, in float64."""
    x = mnist_train.flatten(1).double() / 255
    mean = x.mean(0)
    eigenvalues, eigenvectors = torch.linalg.eigh(x.T @ x / len(x) - torch.outer(mean, mean))
    eigenvalues, eigenvectors = eigenvalues.flip(0).clamp(min=0), eigenvectors.flip(1)
    # rows mean +- sqrt(D * eigenvalue) * eigenvector have this mean and this biased covariance
    spokes = (len(eigenvalues) * eigenvalues).sqrt() * eigenvectors
    return Spectrum(mean, eigenvalues, torch.cat([mean + spokes.T, mean - spokes.T]))
