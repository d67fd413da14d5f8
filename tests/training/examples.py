"""What several files of tests train with, alone, resumed, or in many processes."""

import hashlib
import multiprocessing
import os

import torch
from torch import Tensor, nn

from vaecourse.divergences import kl_standard_normal
from vaecourse.models import VAE
from vaecourse.training.step import Guard

# A server that forks, with this loaded: a child starts in milliseconds.
PRELOADED = ["torch._dynamo", "tests.training.test_processes", "tests.training.test_resuming"]
FORKS = multiprocessing.get_context("forkserver") if os.name == "posix" else None


class StopError(Exception):
    """Like a crash in the middle of a run."""


def crash() -> None:
    raise StopError


class LateGuard(Guard):
    """Looks only when it is asked, as on an accelerator."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.looks_later = True


def given_noise(model: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """The negative ELBO with the noise among the data: slices, devices and processes draw the same."""
    loc, log_scale = model.encode(x)
    nll = model.likelihood.nll(x, model.decode(loc + log_scale.exp() * noise))
    return (nll + kl_standard_normal(loc, log_scale)).mean()


def state(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]


def fingerprint(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in state(model))).hexdigest()


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """To the last bit."""
    return all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))


def start(function, *arguments) -> multiprocessing.Process:
    FORKS.set_forkserver_preload(PRELOADED)
    process = FORKS.Process(target=function, args=arguments)
    process.start()
    return process
