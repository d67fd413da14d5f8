"""Values as JSON, and objects that JSON can only name; used inside the box and outside.

Like `calls` and `runner`, it imports only the standard library; torch is loaded when a value needs it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_NUMBERS = 40_000  # of a tensor that is told


def is_tensor(value: object) -> bool:
    """Whether a value is a tensor; torch may not be loaded at all."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def encode(value: Any) -> dict[str, Any]:
    """Return a value as JSON data: a number, a tensor, None, or the name of another type."""
    if value is None:
        return {"kind": "none"}
    if isinstance(value, bool | int | float):
        return {"kind": "number", "value": value if isinstance(value, int) else float(value)}
    if type(value).__module__ == "numpy" and "torch" in sys.modules:
        value = sys.modules["torch"].as_tensor(value)
    if not is_tensor(value):
        return {"kind": "other", "type": type(value).__name__[:80]}
    told = {
        "kind": "tensor",
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        "device": value.device.type,
        "requires_grad": value.requires_grad,
    }
    if value.numel() > MAX_NUMBERS:
        raise ValueError(f"a tensor of {value.numel()} numbers is too large to be told")
    if value.device.type != "meta" and not value.is_complex():
        told["values"] = value.detach().cpu().tolist()
    return told


def decode(told: Any, objects: dict[str, Any]) -> Any:
    """Return the argument that a call describes: plain JSON, an earlier object, a fixture or a tensor."""
    if not isinstance(told, dict):
        return told
    if "object" in told:
        return objects[told["object"]]
    import torch

    if "fixture" in told:
        settings = {name: decode(value, objects) for name, value in told.items() if name != "fixture"}
        return FIXTURES[told["fixture"]](torch, **settings)
    return torch.tensor(told["values"], dtype=getattr(torch, told["dtype"])).reshape(told["shape"])


def build(described: dict[str, Any], objects: dict[str, Any]) -> dict[str, Any]:
    """Make objects in order, since an optimizer needs its model; add them to the others and return all."""
    for name, told in described.items():
        objects[name] = decode(told, objects)
    return objects


def _linear_model(torch: Any, seed: int, width: int = 3, device: str = "cpu", is_stale: bool = False) -> Any:
    """Return a model whose `model(x)` is a loss: the mean squared norm of a linear layer's output.

    A stale model has gradients from an earlier step.
    """

    class LinearModel(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(width, width, dtype=torch.float64)

        def forward(self, x: Any) -> Any:
            return self.layer(x).square().sum(-1).mean()

    model = LinearModel()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    model = model.to(device)
    for parameter in model.parameters() if is_stale else ():
        parameter.grad = torch.ones_like(parameter)
    return model


# what JSON cannot carry, made from torch and the settings that it can
FIXTURES: dict[str, Callable[..., Any]] = {
    "linear_decoder": lambda torch, weight: lambda z: z @ weight.T,
    "generator": lambda torch, seed: torch.Generator().manual_seed(seed),
    "device": lambda torch, name: torch.device(name),
    "linear_model": _linear_model,
    "optimizer": lambda torch, kind, model, **more: getattr(torch.optim, kind)(model.parameters(), **more),
    "path": lambda torch, name: Path.cwd() / name,
}


def train_steps(model: Any, optimizer: Any, generator: Any, num_steps: int) -> None:
    """Take steps on batches drawn from the generator, which a resumed run has to repeat."""
    import torch

    width = next(model.parameters()).shape[-1]
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.randn(4, width, generator=generator, dtype=torch.float64)).backward()
        optimizer.step()
