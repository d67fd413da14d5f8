"""How a loss is called, and which of its results is the loss."""

import dataclasses
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

LossFn = Callable[..., Any]
ROLES = ("recon_x", "x", "mu", "logvar")

FORM = (
    "loss_fn(recon_x, x, mu, logvar) -> scalar tensor, with recon_x and x of shape (batch, data_dim) "
    "and mu and logvar of shape (batch, latent_dim); wrap anything else in a lambda"
)

# How much the name of an argument says for a role: the first pattern says much, the second little.
_NAMES = {
    "recon_x": (
        "recon|hat|pred|logit|tilde|^dec|^rec|^x_?rec|generat|^r$",
        "out|^px|^p$|prob|^y$|x_?mu|mu_?x",
    ),
    "x": ("target|true|label|orig|real|^gt", r"^xs?\d*$|input|data|batch|image|img|^adj|^t$|^obs"),
    "mu": ("^mu|mu$|mean|^qz_m|^m$", "loc"),
    "logvar": ("var|sigma|std|^qz_v|^lv$|^v$|^s$", "scale|log_?s|raw|prec"),
}
_FOREIGN = {
    "NumPy": r"numpy\(\)|numpy\.|ndarray|__array__",
    "JAX": r"\bjax\b|JAX",
    "TensorFlow": r"tensorflow|EagerTensor",
}


class LossError(ValueError):
    """The loss raised an exception, or what it returned is of no use."""


# ---- arguments ----


@dataclass(frozen=True)
class Binding:
    """The role of each argument of a loss, and whether the names of the arguments settle it."""

    roles: tuple[str, ...] = ROLES
    names: tuple[str, ...] = ()
    is_recon_settled: bool = False
    is_posterior_settled: bool = False
    is_tried: bool = False  # chosen because the usual order did not fit

    def exchanged(self, *pairs: tuple[str, str]) -> "Binding":
        """Return the binding with roles exchanged."""
        swap = {a: b for one, other in pairs for a, b in ((one, other), (other, one))}
        roles = tuple(swap.get(role, role) for role in self.roles)
        return dataclasses.replace(self, roles=roles, is_tried=True)

    def call(self, loss_fn: LossFn, tensors: Mapping[str, Tensor]) -> Any:
        """Call the loss, by the names of its arguments where they are known."""
        values = [tensors[role] for role in self.roles]
        return loss_fn(**dict(zip(self.names, values, strict=True))) if self.names else loss_fn(*values)


def bind(loss_fn: LossFn) -> Binding:
    """Find the roles of the arguments by their names; in the usual order where these do not tell."""
    try:
        parameters = list(inspect.signature(_function(loss_fn)).parameters.values())
    except (TypeError, ValueError):  # written in C
        return Binding()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty]
    optional = [p.name for p in named if p.default is not p.empty and max(map(_score(p.name), ROLES)) > 0]
    names = [*required, *optional[: max(0, 4 - len(required))]]
    if len(names) != 4 or (any(p.kind == p.VAR_POSITIONAL for p in parameters) and len(required) < 4):
        return Binding()
    totals = {
        roles: sum(_score(name)(role) for name, role in zip(names, roles, strict=True))
        for roles in itertools.permutations(ROLES)
    }
    best = max(totals, key=lambda roles: totals[roles])  # the usual order is the first of equals
    binding = Binding(best, tuple(names))
    pairs = (("recon_x", "x"), ("mu", "logvar"))
    leads = [totals[best] - totals[binding.exchanged(pair).roles] for pair in pairs]
    return dataclasses.replace(binding, is_recon_settled=leads[0] >= 2, is_posterior_settled=leads[1] >= 2)


def _score(name: str) -> Callable[[str], int]:
    found = {
        role: next((2 - i for i, pattern in enumerate(patterns) if re.search(pattern, name.lower())), 0)
        for role, patterns in _NAMES.items()
    }
    return lambda role: found[role]


def _function(loss_fn: LossFn) -> LossFn:
    return loss_fn.forward if isinstance(loss_fn, nn.Module) else loss_fn


# ---- what a loss holds ----


def closure_of(function: LossFn) -> dict[str, object]:
    """Values of the names that a function takes from outside."""
    try:
        seen = inspect.getclosurevars(function)
    except ValueError:  # a name that has no value yet
        return {}
    return {**seen.globals, **seen.nonlocals}


def held_by(loss_fn: object, depth: int = 4) -> Iterator[Tensor | nn.Module]:
    """Tensors and modules of a loss: of its instance, its closure, or the globals that it names."""
    if isinstance(loss_fn, Tensor):
        yield loss_fn
        return
    inner: Iterable[object] = ()
    if isinstance(loss_fn, nn.Module):
        yield loss_fn
        inner = [*loss_fn.parameters(), *loss_fn.buffers(), *vars(loss_fn).values()]
    elif inspect.ismethod(loss_fn):
        inner = [loss_fn.__self__, loss_fn.__func__]
    elif inspect.isfunction(loss_fn):
        inner = [*closure_of(loss_fn).values(), *(loss_fn.__defaults__ or ())]
    elif isinstance(loss_fn, functools.partial):
        inner = [loss_fn.func, *loss_fn.args, *loss_fn.keywords.values()]
    elif isinstance(loss_fn, Mapping):
        inner = loss_fn.values()
    elif isinstance(loss_fn, list | tuple):
        inner = loss_fn
    elif not inspect.ismodule(loss_fn) and not isinstance(loss_fn, type):
        inner = (inspect.getattr_static(loss_fn, "__dict__", None) and vars(loss_fn).values()) or ()
    for value in islice(inner, 100) if depth else ():
        yield from held_by(value, depth - 1)


def find_device(loss_fn: LossFn) -> torch.device:
    """Device of the tensors that a loss holds; the CPU where there are none elsewhere."""
    devices = (held.device for held in held_by(loss_fn) if isinstance(held, Tensor))
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


@contextmanager
def unchanged_buffers(loss_fn: LossFn) -> Iterator[None]:
    """Put back what the layers of a loss, such as those that normalise a batch, write down at each call."""
    buffers = [
        buffer for held in held_by(loss_fn) if isinstance(held, nn.Module) for buffer in held.buffers()
    ]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, saved in zip(buffers, before, strict=True):
                buffer.copy_(saved)


# ---- results and failures ----


def choose(returned: Any, output: str | int | None) -> tuple[Any, str | None]:
    """Return the loss in what was returned, and which item that was, if it was not alone."""
    if output is not None:
        if isinstance(returned, tuple | list) and str(output).isdigit():
            output = int(output)  # as a command line gives it
        try:
            if isinstance(output, str) and not isinstance(returned, Mapping):
                return getattr(returned, output), repr(output)
            return returned[output], repr(output)
        except (LookupError, TypeError, AttributeError) as error:
            raise LossError(
                f"loss_fn returned {_outline(returned)}, which has no item {output!r}; "
                "output= takes a key, an index, or the name of an attribute"
            ) from error
    if isinstance(returned, Mapping | tuple | list):
        items = dict(returned if isinstance(returned, Mapping) else enumerate(returned))
    elif not isinstance(returned, Tensor) and hasattr(returned, "loss"):
        items = {"loss": returned.loss}
    else:
        return returned, None
    scalars = {key: item for key, item in items.items() if isinstance(item, Tensor) and item.numel() == 1}
    if not scalars:
        raise LossError(f"loss_fn returned {_outline(returned)}, without a scalar tensor; expected {FORM}")
    named = [key for key in scalars if str(key).lower() in ("loss", "total_loss")]
    chosen = [*named, *scalars][0]
    return scalars[chosen], repr(chosen)


def _outline(returned: Any) -> str:
    items: dict[Any, Any] = {}
    if isinstance(returned, Mapping | tuple | list):
        items = dict(returned if isinstance(returned, Mapping) else enumerate(returned))
    inner = ", ".join(f"{key!r}: {type(value).__name__}" for key, value in islice(items.items(), 8))
    return f"a {type(returned).__name__}" + (f" ({inner})" if inner else "")


def check_scalar(loss: Any) -> None:
    """Refuse what is no differentiable scalar of PyTorch."""
    foreign = type(loss).__module__.partition(".")[0]
    if foreign in ("numpy", "jax", "jaxlib", "tensorflow"):
        raise LossError(pytorch_only({"numpy": "NumPy", "tensorflow": "TensorFlow"}.get(foreign, "JAX")))
    if not isinstance(loss, Tensor) or loss.layout != torch.strided or not loss.is_floating_point():
        kind = f"{loss.dtype} tensor" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn returned a {kind}, not a floating point tensor; expected {FORM}")
    if loss.numel() != 1 or loss.device.type == "meta":
        raise ValueError(
            f"loss_fn returned shape {tuple(loss.shape)} on {loss.device}, not a scalar: take its mean over "
            f"the batch, lambda *a: loss(*a).mean(); expected {FORM}"
        )
    if not loss.requires_grad:
        raise ValueError(
            "the loss is not differentiable in any of its arguments (is something detached?); "
            f"expected {FORM}"
        )


def pytorch_only(library: str) -> str:
    """What to do with a loss of another library."""
    return (
        f"PyTorch losses only: this one computes with {library}. Write its formula with torch instead, "
        "def loss_fn(recon_x, x, mu, logvar): "
        "return (recon_x - x).square().sum() - 0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(), "
        "with your own sums and weights."
    )


def advise(error: Exception) -> str:
    """What to do about an exception of the loss; nothing where that is not known."""
    text = f"{type(error).__name__}: {error}"
    for library, pattern in _FOREIGN.items():
        if re.search(pattern, text):
            return pytorch_only(library)
    if isinstance(error, KeyError) or (isinstance(error, TypeError) and "argument" in text):
        return (
            "hand the four tensors over as your loss takes them, and bind the rest, in a lambda such as "
            "lambda recon_x, x, mu, logvar: your_loss(x, recon_x, mu, logvar, beta=1.0)"
        )
    if "unpack" in text:
        return (
            "if your decoder returns two tensors, take them out of one that is twice as wide: "
            "lambda recon_x, x, mu, logvar: your_loss(recon_x.chunk(2, 1), x, mu, logvar)"
        )
    return ""
