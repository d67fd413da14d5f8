"""Many processes that train one model: how they start, what each knows about itself, what they share."""

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from vaecourse.training.devices import choose_device


def place_among_processes() -> tuple[int, int]:
    """Rank of this process and number of processes: 0 of 1 where torch.distributed is not in use."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def from_all(tensor: Tensor, device: torch.device) -> list[Tensor]:
    """A tensor of each process, in the order of ranks; `device` is where they meet."""
    _, world_size = place_among_processes()
    if world_size == 1:
        return [tensor]
    own = tensor.to(device)
    received = [torch.empty_like(own) for _ in range(world_size)]
    dist.all_gather(received, own)
    return [item.cpu() for item in received]


def launched_processes() -> int | None:
    """Number of processes that torchrun has started, this one among them; None without torchrun."""
    if dist.is_available() and dist.is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    return None


def launch(num_processes: int, max_restarts: int, arguments: Sequence[str]) -> int:
    """Run the command line in many processes of this machine, as torchrun does, and return its exit status.

    Parameters
    ----------
    num_processes : int
        How many.
    max_restarts : int
        How often all of them are started again after one has failed.
    arguments : sequence of str
        What follows ``vaecourse`` on the command line.

    Returns
    -------
    int
        0, or the status of the process that failed first.

    Raises
    ------
    ValueError
        If `max_restarts` is negative.

    Examples
    --------
    >>> launch(2, -1, ["train", "runs/digits"])
    Traceback (most recent call last):
    ValueError: max_restarts must not be negative, got -1
    """
    if max_restarts < 0:
        raise ValueError(f"max_restarts must not be negative, got {max_restarts}")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    # else processes that start again on one machine often cannot agree on a port:
    # https://github.com/pytorch/pytorch/issues/135712
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    options = ["--standalone", f"--nproc-per-node={num_processes}", f"--max-restarts={max_restarts}"]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    logging.disable(logging.ERROR)  # the processes say themselves what is wrong
    try:
        torchrun([*options, "-m", "vaecourse", *arguments])
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status > 0 else 128 - status
    except SignalException as stop:  # the processes had it too, and have saved
        return 128 + stop.sigval
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


@contextlib.contextmanager
def process_group(device: str, num_processes: int) -> Iterator[tuple[torch.device, int]]:
    """Device and rank of this process; under torchrun, inside a process group."""
    launched = launched_processes()
    if launched is None:
        if num_processes != 1:
            raise ValueError(f"{num_processes} processes are started by --processes or by torchrun")
        yield choose_device(device), 0
        return
    if num_processes != launched:
        raise ValueError(f"torchrun started {launched} processes, not {num_processes}")
    place = choose_device(device)
    if place.type == "cuda":
        place = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(place)
    elif device == "auto":
        place = torch.device("cpu")  # what gloo can handle
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timedelta(minutes=5))
    try:
        yield place, dist.get_rank()
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors (torch 2.13): only its name in the text tells them from others
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).partition("\n")[0]
        raise ConnectionError(f"process {dist.get_rank()} lost the others: {reason}") from error
    finally:
        dist.destroy_process_group()
