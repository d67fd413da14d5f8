"""What the processor can do at best: the rate of matrix products, and the products that a step needs."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.measuring import seconds_per_call
from vaecourse.models import VAE
from vaecourse.objectives import negative_elbo


def square_rate(size: int, dtype: torch.dtype, threads: int) -> float:
    """Operations per second of a square product; a multiply-add counts as 2."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    return 2 * size**3 / seconds_per_call(partial(torch.mm, a, b), threads)


@functools.cache
def bf16_problem(threads: int) -> str | None:
    """Why measuring bf16 would say nothing here, if so: without instructions for it, it is emulated."""
    bf16, float32 = (square_rate(512, dtype, threads) for dtype in (torch.bfloat16, torch.float32))
    if bf16 > float32:
        return None
    return (
        "this processor has no bf16 arithmetic: a product of 512 by 512 runs at "
        f"{bf16 / 1e9:.0f} GFLOP/s in bf16 and at {float32 / 1e9:.0f} in float32"
    )


def step_flops(vae: VAE, x: Tensor) -> int:
    """Operations of the matrix products of one forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        negative_elbo(vae, x).backward()
    vae.zero_grad()
    return int(counter.get_total_flops())


class ProductRecorder(TorchDispatchMode):
    """Remembers every matrix product that runs, with the very tensors (and strides) it ran on."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.products.append((func, tuple(arg.detach() for arg in args)))
        return func(*args, **(kwargs or {}))

    def replay(self) -> None:
        """Run the products again, and nothing else."""
        for func, args in self.products:
            func(*args)


def step_products(vae: VAE, x: Tensor, dtype: torch.dtype) -> ProductRecorder:
    """The products of one forward and backward pass in float32 or bf16."""
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with ProductRecorder() as recorder, autocast:
        negative_elbo(vae, x).backward()
    vae.zero_grad()
    return recorder
