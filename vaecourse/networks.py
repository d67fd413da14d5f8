"""Networks that emit the parameters of a distribution, and say what is wrong with their input."""

import itertools
from collections.abc import Sequence
from typing import cast

import torch  # noqa: F401  (for the examples)
from torch import Tensor, nn

from vaecourse._checks import check_count, check_input


def mlp(dims: Sequence[int], *, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Multi-layer perceptron with an activation between, but not after, its linear layers.

    Parameters
    ----------
    dims : sequence of int
        Input dimension, hidden dimensions, output dimension; at least two numbers.
    activation : type of nn.Module
        Class of the activation.

    Returns
    -------
    nn.Sequential
        Maps (..., dims[0]) to (..., dims[-1]).

    Raises
    ------
    ValueError
        If fewer than two dimensions are given or one is not a positive whole number.
    TypeError
        If `activation` is not a class.

    Examples
    --------
    >>> [type(layer).__name__ for layer in mlp([784, 400, 20])]
    ['Linear', 'ReLU', 'Linear']
    """
    for dim in dims:
        check_count("each of dims", dim)
    if not (isinstance(activation, type) and issubclass(activation, nn.Module)):
        raise TypeError(f"activation must be a class such as nn.ReLU, got {activation!r}")
    if len(dims) < 2:
        raise ValueError(f"dims must hold input and output dimension, got {list(dims)}")
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(dims):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return _Perceptron(*layers[:-1])


class _Perceptron(nn.Sequential):
    """Linear layers that say what is wrong with their input."""

    def forward(self, input: Tensor) -> Tensor:
        first = cast("nn.Linear", self[0])
        check_input(input, first.weight)
        if input.shape[-1:] != (first.in_features,):
            raise ValueError(
                f"the input has shape {tuple(input.shape)} and the network takes (..., {first.in_features}): "
                "flatten images to one row each, as x.flatten(1) and datasets.to_unit_interval do"
            )
        output: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return output


class Encoder(nn.Module):
    """Network for the approximate posterior q(z|x), a diagonal Gaussian.

    Parameters
    ----------
    network : nn.Module
        Maps (batch, data_dim) to (batch, 2 * latent_dim).

    Examples
    --------
    >>> loc, log_scale = Encoder(mlp([784, 2 * 20]))(torch.zeros(5, 784))
    >>> loc.shape, log_scale.shape
    (torch.Size([5, 20]), torch.Size([5, 20]))
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log standard deviation of q(z|x), each (batch, latent_dim).

        Raises
        ------
        ValueError
            If the network puts out an odd number.
        """
        output = self.network(x)
        if output.shape[-1] % 2:
            raise ValueError(
                f"the network must emit loc and log_scale, 2 * latent_dim numbers, got {output.shape[-1]}"
            )
        loc, log_scale = output.chunk(2, dim=-1)  # (batch, 2 K) -> (batch, K), (batch, K)
        return loc, log_scale


class Decoder(nn.Module):
    """Network for the parameters of the likelihood p(x|z).

    Parameters
    ----------
    network : nn.Module
        Maps (..., latent_dim) to (..., data_dim * likelihood.num_params).

    Examples
    --------
    >>> Decoder(mlp([20, 784]))(torch.zeros(5, 20)).shape
    torch.Size([5, 784])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Tensor:
        """Likelihood parameters, (..., data_dim * num_params), for latents (..., latent_dim)."""
        params: Tensor = self.network(z)
        return params
