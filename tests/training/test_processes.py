"""Two processes on the CPU (gloo) do what one does; a killed one neither hangs a job nor changes its end."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vaecourse.divergences import kl_standard_normal
from vaecourse.likelihoods import BernoulliLikelihood, GaussianLikelihood
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import negative_elbo
from vaecourse.training import CheckpointError, Checkpoints, fit, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.skipif(
    os.name != "posix" or not dist.is_gloo_available(), reason="needs torch's gloo and a system that forks"
)
ROOT = Path(__file__).parents[2]
LIKELIHOODS = {"bernoulli": BernoulliLikelihood, "gaussian-learned": lambda: GaussianLikelihood("learned")}


class StopError(Exception):
    pass


def given_noise(model: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """The negative ELBO with the noise among the data, so that every process could draw the same."""
    loc, log_scale = model.encode(x)
    nll = model.likelihood.nll(x, model.decode(loc + log_scale.exp() * noise))
    return (nll + kl_standard_normal(loc, log_scale)).mean()


def summed(model: VAE, x: Tensor, noise: Tensor) -> Tensor:
    return given_noise(model, x, noise) * len(x)


def train(likelihood: str, loss_fn, *, num_examples=37, checkpoints=None, stop_at=None, **arguments) -> dict:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(num_examples, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_examples, 2, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    model = mlp_vae(6, 2, hidden_dims=(4,), likelihood=LIKELIHOODS[likelihood]()).double()
    calls, random_states = iter(range(1000)), []

    def stopping(model: VAE, *batch: Tensor) -> Tensor:
        if next(calls) == stop_at:
            raise StopError
        random_states.append(torch.get_rng_state())
        return loss_fn(model, *batch)

    arguments = {"num_epochs": 2, "batch_size": 12, **arguments}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)  # Adam would hide a factor
    history = fit(model, stopping, (x, noise), optimizer=optimizer, checkpoints=checkpoints, **arguments)
    return {"model": model.state_dict(), "loss": history.loss, "random_states": random_states}


def own_noise(model: VAE, x: Tensor, noise: Tensor) -> Tensor:
    return negative_elbo(model, x)


def worker(rank: int, folder: str, arguments: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        if "checkpoint_folder" in arguments:
            name = arguments.pop("checkpoint_folder")
            arguments["checkpoints"] = Checkpoints(Path(folder, name), every=2)
        save_checkpoint(Path(folder, f"result-{rank}.ckpt"), train(**arguments))
    except StopError:
        # Like a crash.  A group that is taken down in the middle of its work may wait for itself for ever:
        # ~ProcessGroupGloo joins, with the interpreter's lock, a thread that needs the lock (torch 2.13).
        os._exit(1)
    finally:
        dist.destroy_process_group()


def in_two_processes(folder: Path, **arguments) -> list[dict]:
    """Results of both ranks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    (folder / "store").unlink(missing_ok=True)
    processes = [
        context.Process(target=worker, args=(rank, str(folder), dict(arguments))) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()  # or pytest would wait for one that hangs
        process.join()
    assert [process.exitcode for process in processes] == [1, 1] if arguments.get("stop_at") else [0, 0]
    if "stop_at" in arguments:
        return []
    return [load_checkpoint(folder / f"result-{rank}.ckpt") for rank in range(2)]


def assert_close(first: dict, second: dict) -> None:
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-12)
    for name, weight in first["model"].items():
        torch.testing.assert_close(weight, second["model"][name], rtol=1e-10, atol=1e-12)


# --- the same gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size"),
    [
        pytest.param(
            12, None, id="uneven last batch of 1"
        ),  # 12 + 12 + 12 + 1: one process has nothing to do
        pytest.param(7, None, id="shares of 4 and 3"),
        pytest.param(37, 5, id="shares in slices"),
        pytest.param(7, 3, id="different numbers of slices"),  # 3 + 1 and 3
    ],
)
def test_two_processes_take_the_steps_of_one(likelihood, batch_size, micro_batch_size, tmp_path):
    sizes = {"batch_size": batch_size, "micro_batch_size": micro_batch_size}
    both = in_two_processes(tmp_path, likelihood=likelihood, loss_fn=given_noise, **sizes)
    assert_close(both[0], both[1])
    assert_close(both[0], train(likelihood, given_noise, **sizes))


def test_two_processes_halve_the_gradient_of_a_sum(tmp_path):
    """Averaging over processes is right for a mean and halves a sum: the steps are those of half the loss."""
    both = in_two_processes(tmp_path, likelihood="bernoulli", loss_fn=summed, num_examples=36)

    def half(model: VAE, x: Tensor, noise: Tensor) -> Tensor:
        return summed(model, x, noise) / 2

    alone = train("bernoulli", half, num_examples=36)
    whole = train("bernoulli", summed, num_examples=36)
    name = "decoder.network.2.bias"
    torch.testing.assert_close(both[0]["model"][name], alone["model"][name], rtol=1e-10, atol=1e-12)
    assert (both[0]["model"][name] - whole["model"][name]).abs().max() > 1e-3


def test_two_processes_draw_different_noise(tmp_path):
    """The first what a single process would draw; the weights stay the same all the same."""
    both = in_two_processes(tmp_path, likelihood="bernoulli", loss_fn=own_noise)
    alone = train("bernoulli", own_noise)
    first, second, single = (result["random_states"][0] for result in (*both, alone))
    assert torch.equal(first, single) and not torch.equal(first, second)
    assert_close(both[0], both[1])


# --- checkpoints -----------------------------------------------------------------------------------------


def test_two_processes_resume_to_the_same_bits_and_only_the_first_writes(tmp_path):
    arguments = {"likelihood": "bernoulli", "loss_fn": own_noise}
    through = in_two_processes(tmp_path, **arguments)
    in_two_processes(tmp_path, **arguments, stop_at=5, checkpoint_folder="run")
    assert [path.name for path in Checkpoints(tmp_path / "run").paths()] == [
        "step-000000002.ckpt", "step-000000004.ckpt",
    ]  # fmt: skip
    resumed = in_two_processes(tmp_path, **arguments, checkpoint_folder="run")
    for ours, theirs in zip(resumed, through, strict=True):
        assert ours["loss"] == theirs["loss"]
        assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in theirs["model"])
    with pytest.raises(CheckpointError, match="processes was 2, is 1"):
        train(**arguments, checkpoints=Checkpoints(tmp_path / "run"))


def test_batch_smaller_than_the_number_of_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("vaecourse.training.step.place_among_processes", lambda: (0, 3))
    with pytest.raises(ValueError, match="a batch of 2 cannot be shared by 3 processes"):
        train("bernoulli", given_noise, batch_size=2)


# --- torchrun --------------------------------------------------------------------------------------------


def torchrun(
    folder: Path, *arguments: str, restarts: int, timeout: float = 180
) -> subprocess.CompletedProcess:
    """Run this file in two processes under torch's own launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", __file__, str(folder), *arguments]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        # without it restarts on one machine often fail (pytorch/pytorch issue 135712)
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def test_job_whose_process_is_killed_restarts_and_ends_with_the_same_bits(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert torchrun(whole, restarts=0).returncode == 0
    done = torchrun(broken, "kill", restarts=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (broken / "killed").exists()
    assert (broken / "final.txt").read_text() == (whole / "final.txt").read_text()


def test_job_whose_process_is_killed_ends_and_says_so(tmp_path):
    start = time.monotonic()
    done = torchrun(tmp_path, "kill", restarts=0)
    assert done.returncode != 0
    assert "exitcode  : -9" in done.stderr
    assert time.monotonic() - start < 120
    assert Checkpoints(tmp_path / "checkpoints").latest() is not None


def main(folder: Path, *arguments: str) -> None:
    """One process of the job; the second one may kill itself in the middle of an epoch, once."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    model = mlp_vae(6, 2, hidden_dims=(4,))
    x = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    calls = iter(range(10**6))

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        if (
            "kill" in arguments
            and dist.get_rank() == 1
            and next(calls) == 17
            and not (folder / "killed").exists()
        ):
            (folder / "killed").touch()
            os.kill(os.getpid(), 9)
        return negative_elbo(model, x)

    fit(
        model,
        loss_fn,
        x,
        num_epochs=3,
        batch_size=6,
        checkpoints=Checkpoints(folder / "checkpoints", every=4),
    )
    if dist.get_rank() == 0:
        weights = b"".join(weight.numpy().tobytes() for weight in model.state_dict().values())
        (folder / "final.txt").write_text(hashlib.sha256(weights).hexdigest())
    dist.destroy_process_group()


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(exist_ok=True)
    main(Path(sys.argv[1]), *sys.argv[2:])
