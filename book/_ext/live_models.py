"""Train the models behind the live figures and write what the pages need of them: `make live`, ten minutes.

The models are those of chapters 2 (the latent plane) and 3 (the ladder of variances), trained on all of
MNIST.  Pages get scripts that assign data, because a page opened as a file may not fetch any; the decoder's
weights are rounded to 8 bits with a scale for each row.
"""

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vaecourse.datasets import mnist, to_unit_interval
from vaecourse.evaluation import active_units, evaluate_elbo
from vaecourse.likelihoods import GaussianLikelihood
from vaecourse.models import VAE, mlp_vae
from vaecourse.objectives import negative_elbo
from vaecourse.training import fit

FOLDER = Path(__file__).parents[1] / "_static" / "live" / "data"
VARIANCES = [0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 392.0]
SHOWN_CODES = 2000
CODE_UNIT = 1e-3  # codes are kept as 16-bit integers in this unit


def encode_array(values: Tensor, dtype: type) -> str:
    """Return the bytes of an array, little-endian, in base 64."""
    array = values.detach().cpu().numpy().astype(np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode("ascii")


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers of 8 bits and a scale for each row; no entry is off by more than half a scale."""
    scale = weight.abs().amax(1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round(), scale


@torch.no_grad()
def pack_layers(network: nn.Sequential) -> list[dict[str, Any]]:
    """Return the linear layers for the page, and round those of the network likewise."""
    layers = []
    for layer in network:
        if isinstance(layer, nn.Linear):
            integers, scale = quantize_rows(layer.weight)
            layer.weight.copy_(integers * scale[:, None])
            layers.append(
                {
                    "inputs": layer.in_features,
                    "outputs": layer.out_features,
                    "weights": encode_array(integers, np.int8),
                    "scales": encode_array(scale, np.float32),
                    "biases": encode_array(layer.bias, np.float32),
                }
            )
    return layers


def write(name: str, data: dict[str, Any]) -> None:
    """Write a script that hands data to the live figures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.js"
    path.write_text(f"(window.vaecourse ??= {{}}).{name} = {json.dumps(data, separators=(',', ':'))};\n")
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def train(x: Tensor, latent_dim: int, hidden_dims: tuple[int, ...], likelihood: GaussianLikelihood) -> VAE:
    """Return a VAE trained on images."""
    torch.manual_seed(0)
    model = mlp_vae(784, latent_dim, hidden_dims=hidden_dims, likelihood=likelihood)
    for learning_rate in (2e-3, 5e-4):
        fit(model, negative_elbo, x, num_epochs=15, batch_size=200, learning_rate=learning_rate, seed=0)
    return model


def write_spectrum(x: Tensor) -> None:
    """Write the eigenvalues of the training images' covariance, descending."""
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0)).flip(0).clamp(min=0)
    write("spectrum", {"eigenvalues": [float(f"{value:.6g}") for value in eigenvalues]})


@torch.no_grad()
def write_plane(x: Tensor, x_test: Tensor, labels: Tensor) -> None:
    """Write a decoder of two latents, and where test images lie."""
    with torch.enable_grad():
        model = train(x, 2, (256, 128), GaussianLikelihood("optimal"))
    elbo = evaluate_elbo(model, x_test).elbo().mean().item()
    layers = pack_layers(model.decoder.network)
    rounded = evaluate_elbo(model, x_test).elbo().mean().item()
    print(f"latent plane: ELBO {elbo:.2f} nats, {rounded:.2f} with rounded weights")
    if abs(rounded - elbo) > 1:
        raise RuntimeError("rounding the decoder's weights changes the model")
    codes = model.encode(x_test[:SHOWN_CODES])[0] / CODE_UNIT
    write(
        "plane",
        {
            "layers": layers,
            "scale": float(model.likelihood.scale),
            "codes": encode_array(codes.round(), np.int16),
            "codeUnit": CODE_UNIT,
            "labels": "".join(str(int(label)) for label in labels[:SHOWN_CODES]),
        },
    )


@torch.no_grad()
def write_ladder(x: Tensor, x_test: Tensor, labels: Tensor) -> None:
    """Write what VAEs of several variances make of one test image of each digit, and what they pay."""
    images = x_test[[int((labels == digit).nonzero()[0]) for digit in range(10)]]
    rungs = []
    for variance in VARIANCES:
        with torch.enable_grad():
            model = train(x, 20, (200,), GaussianLikelihood(math.sqrt(variance)))
        terms = evaluate_elbo(model, x_test)
        constant = 392 * math.log(2 * math.pi * variance)
        means = model.decode(model.encode(images)[0]).clamp(0, 1) * 255
        rungs.append(
            {
                "variance": variance,
                "sse": round((terms.nll.mean().item() - constant) * 2 * variance, 3),
                "kl": round(terms.kl.mean().item(), 3),
                "activeUnits": active_units(model, x_test).count,
                "means": encode_array(means.round(), np.uint8),
            }
        )
        print({key: value for key, value in rungs[-1].items() if key != "means"})
    write("ladder", {"images": encode_array((images * 255).round(), np.uint8), "rungs": rungs})


def main() -> None:
    """Train, and write the three files."""
    torch.set_num_threads(1)  # the same sums in the same order, everywhere
    x = to_unit_interval(mnist("train")[0])
    images, labels = mnist("test")
    x_test = to_unit_interval(images)
    write_spectrum(x)
    write_plane(x, x_test, labels)
    write_ladder(x, x_test, labels)


if __name__ == "__main__":
    main()
