"""Settings that every test shares, and the data that several folders look at."""

import os
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from vaecourse.datasets import digits, mnist

# The same examples on every machine: a property test that fails, fails everywhere.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=200, database=None)
# Many fresh examples, for the nightly job.
settings.register_profile("nightly", deadline=None, max_examples=10_000, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes on two cores, whose threads would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that they start
    torch.set_num_threads(1)


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
