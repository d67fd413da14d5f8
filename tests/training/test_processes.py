"""Two processes on the CPU (gloo) do what one does; a killed one neither hangs a job nor changes its end."""

import functools
import itertools
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.core.examples import LIKELIHOODS, data, normal
from tests.training.examples import StopError, crash, given_noise, start
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import negative_elbo
from vaecourse.training import CheckpointError, Checkpoints, fit, load_checkpoint, save_checkpoint

CAN_FORK = os.name == "posix" and dist.is_gloo_available()
pytestmark = [pytest.mark.long, pytest.mark.skipif(not CAN_FORK, reason="needs gloo and a system that forks")]
forked = pytest.mark.xdist_group("forks")
ROOT = Path(__file__).parents[2]


def summed(model: VAE, x: Tensor, noise: Tensor, factor: float = 1) -> Tensor:
    return factor * given_noise(model, x, noise) * len(x)


def own_noise(model: VAE, x: Tensor, noise: Tensor) -> Tensor:
    return negative_elbo(model, x)


def kill_second_once(folder: Path) -> None:
    if dist.get_rank() == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), 9)


def train(
    likelihood: str, loss_fn, *, num_examples=37, checkpoints=None, act=None, act_at=None, **arguments
) -> dict:
    """Train a small VAE; at the given call of the loss do something."""
    batch = data(num_examples, 6), normal(num_examples, 2)
    torch.manual_seed(0)
    model = mlp_vae(6, 2, hidden_dims=(4,), likelihood=LIKELIHOODS[likelihood]()).double()
    calls, random_states = itertools.count(), []

    def acting(model: VAE, *batch: Tensor) -> Tensor:
        if next(calls) == act_at:
            act()
        random_states.append(torch.get_rng_state())
        return loss_fn(model, *batch)

    arguments = {"num_epochs": 2, "batch_size": 12, **arguments}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)  # Adam would hide a factor
    history = fit(model, acting, batch, optimizer=optimizer, checkpoints=checkpoints, **arguments)
    return {"model": model.state_dict(), "loss": history.loss, "random_states": random_states}


def worker(folder: Path, arguments: dict, **group) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60), **group)
    try:
        save_checkpoint(folder / f"result-{dist.get_rank()}.ckpt", train(**arguments))
    except StopError:
        # Like a crash.  A group that is taken down in the middle of its work may wait for itself for ever:
        # ~ProcessGroupGloo joins, with the interpreter's lock, a thread that needs the lock (torch 2.13).
        os._exit(1)
    finally:
        dist.destroy_process_group()


def results(folder: Path) -> list[dict]:
    return [load_checkpoint(folder / f"result-{rank}.ckpt") for rank in range(2)]


def in_two_processes(folder: Path, *, exit_status: int = 0, **arguments) -> list[dict]:
    """Results of both ranks."""
    (folder / "store").unlink(missing_ok=True)
    group = {"init_method": f"file://{folder}/store", "world_size": 2}
    ranks = [functools.partial(worker, folder, arguments, rank=rank, **group) for rank in range(2)]
    processes = [start(rank) for rank in ranks]
    for process in processes:
        process.join(120)
        process.kill()  # or pytest would wait for one that hangs
        process.join()
    assert [process.exitcode for process in processes] == [exit_status] * 2
    return [] if exit_status else results(folder)


def assert_close(first: dict, second: dict) -> None:
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-12)
    torch.testing.assert_close(first["model"], second["model"], rtol=1e-10, atol=1e-12)


def assert_same_bits(first: list[dict], second: list[dict]) -> None:
    for ours, theirs in zip(first, second, strict=True):
        assert ours["loss"] == theirs["loss"]
        torch.testing.assert_close(ours["model"], theirs["model"], rtol=0, atol=0)


# --- the same gradients ----------------------------------------------------------------------------------


@forked
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian-learned"])
@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size"),
    [(12, None), (7, None), (37, 5), (7, 3)],
    ids=[
        "uneven last batch of 1",  # 12 + 12 + 12 + 1: one process has nothing to do
        "shares of 4 and 3",
        "shares in slices",
        "different numbers of slices",  # 3 + 1 and 3
    ],
)
def test_two_processes_take_the_steps_of_one(likelihood, batch_size, micro_batch_size, tmp_path):
    sizes = {"batch_size": batch_size, "micro_batch_size": micro_batch_size}
    both = in_two_processes(tmp_path, likelihood=likelihood, loss_fn=given_noise, **sizes)
    assert_close(both[0], both[1])
    assert_close(both[0], train(likelihood, given_noise, **sizes))


@forked
def test_two_processes_halve_the_gradient_of_a_sum(tmp_path):
    """Averaging over processes is right for a mean and halves a sum: the steps are those of half the loss."""
    both = in_two_processes(tmp_path, likelihood="bernoulli", loss_fn=summed, num_examples=36)
    half = train("bernoulli", functools.partial(summed, factor=0.5), num_examples=36)
    whole = train("bernoulli", summed, num_examples=36)
    name = "decoder.network.2.bias"
    torch.testing.assert_close(both[0]["model"][name], half["model"][name], rtol=1e-10, atol=1e-12)
    assert (both[0]["model"][name] - whole["model"][name]).abs().max() > 1e-3


@forked
def test_two_processes_draw_different_noise(tmp_path):
    """The first what a single process would draw; the weights stay the same all the same."""
    both = in_two_processes(tmp_path, likelihood="bernoulli", loss_fn=own_noise)
    alone = train("bernoulli", own_noise)
    first, second, single = (result["random_states"][0] for result in (*both, alone))
    assert torch.equal(first, single) and not torch.equal(first, second)
    assert_close(both[0], both[1])


# --- checkpoints -----------------------------------------------------------------------------------------


@forked
def test_two_processes_resume_to_the_same_bits_and_only_the_first_writes(tmp_path):
    arguments = {"likelihood": "bernoulli", "loss_fn": own_noise}
    through = in_two_processes(tmp_path, **arguments)
    arguments["checkpoints"] = Checkpoints(tmp_path / "run", identity="own noise", every=2)
    in_two_processes(tmp_path, **arguments, act=crash, act_at=5, exit_status=1)
    names = [path.stem for path in arguments["checkpoints"].paths()]
    assert names == ["step-000000002", "step-000000004"]
    assert_same_bits(in_two_processes(tmp_path, **arguments), through)
    with pytest.raises(CheckpointError, match="processes was 2, is 1"):
        train(**arguments)


# --- torchrun --------------------------------------------------------------------------------------------


def torchrun(folder: Path, *, restarts: int) -> subprocess.CompletedProcess:
    """Run this file in two processes under torch's own launcher; the second one kills itself once."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", __file__, str(folder)]
    # without the last one restarts on one machine often fail (pytorch/pytorch issue 135712)
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.run(command, env=os.environ | more, capture_output=True, text=True, timeout=180)


@forked
def test_job_whose_process_is_killed_restarts_and_ends_with_the_same_bits(tmp_path):
    done = torchrun(tmp_path, restarts=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "killed").exists()
    restarted = results(tmp_path)
    assert_same_bits(restarted, in_two_processes(tmp_path, likelihood="bernoulli", loss_fn=own_noise))


def test_job_whose_process_is_killed_ends_and_says_so(tmp_path):
    start = time.monotonic()
    done = torchrun(tmp_path, restarts=0)
    assert done.returncode != 0
    assert "exitcode  : -9" in done.stderr
    assert time.monotonic() - start < 120
    assert Checkpoints(tmp_path / "run").latest() is not None


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    ACT = {"act": functools.partial(kill_second_once, FOLDER), "act_at": 5}
    RUN = {"checkpoints": Checkpoints(FOLDER / "run", identity="own noise", every=2), **ACT}
    worker(FOLDER, {"likelihood": "bernoulli", "loss_fn": own_noise, **RUN})
