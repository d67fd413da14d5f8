"""Networks that emit the parameters of a distribution.

A model holds a `likelihoods.Likelihood` and leaves to it what its output
means; losses live in `objectives`, training in `training`.
"""

import itertools
from collections.abc import Sequence

import torch  # noqa: F401  (for the examples)
from torch import Tensor, distributions, nn

from vaecourse.likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood


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
        If fewer than two dimensions are given or one is not positive.

    Examples
    --------
    >>> [type(layer).__name__ for layer in mlp([784, 400, 20])]
    ['Linear', 'ReLU', 'Linear']
    """
    if len(dims) < 2 or min(dims) < 1:
        raise ValueError(f"dims must hold input and output dimension, all positive, got {list(dims)}")
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(dims):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


class GaussianRegressor(nn.Module):
    """Regression as a likelihood: a network for the location, and a Gaussian around it.

    Parameters
    ----------
    network : nn.Module
        Maps (batch, input_dim) to (batch, output_dim * likelihood.num_params).
    likelihood : GaussianLikelihood, optional
        Says how the scale is set; a unit scale if left out.

    Examples
    --------
    >>> regressor = GaussianRegressor(mlp([1, 1]), GaussianLikelihood("learned"))
    >>> regressor.loss(torch.zeros(4, 1), torch.ones(4, 1)).shape
    torch.Size([])
    """

    def __init__(self, network: nn.Module, likelihood: GaussianLikelihood | None = None) -> None:
        super().__init__()
        self.network = network
        self.likelihood = GaussianLikelihood() if likelihood is None else likelihood

    def forward(self, x: Tensor) -> Tensor:
        """Parameters of the Gaussian of y at each input: (batch, input_dim) to (batch, ...)."""
        params: Tensor = self.network(x)
        return params

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean negative log-likelihood, in nats per example.

        Parameters
        ----------
        x : Tensor, shape (batch, input_dim)
            Inputs.
        y : Tensor, shape (batch, output_dim)
            Targets.

        Returns
        -------
        Tensor, shape ()
            Nats per example: summed over output dimensions, averaged over the batch.

        Raises
        ------
        ValueError
            If `x` holds no example.
        """
        if x.shape[0] == 0:
            raise ValueError(f"x must hold at least one example, got shape {tuple(x.shape)}")
        return self.likelihood.nll(y, self(x)).mean()


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
        """Location and log standard deviation of q(z|x), each (batch, latent_dim)."""
        loc, log_scale = self.network(x).chunk(2, dim=-1)  # (batch, 2 K) -> (batch, K), (batch, K)
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


class VAE(nn.Module):
    """Variational autoencoder: encoder, decoder, and an exchangeable likelihood.

    The prior is the standard normal.  ``latent_dim`` is read off the encoder's output.

    Parameters
    ----------
    encoder : nn.Module
        Maps data (batch, data_dim) to ``loc`` and ``log_scale`` of q(z|x), each (batch, latent_dim).
    decoder : nn.Module
        Maps latents (..., latent_dim) to the likelihood's parameters.
    likelihood : Likelihood
        What the decoder's output means.

    References
    ----------
    Kingma and Welling, Auto-Encoding Variational Bayes (2014).

    Examples
    --------
    >>> vae = mlp_vae(784, 20)
    >>> vae.posterior(torch.zeros(5, 784)).event_shape
    torch.Size([20])
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log standard deviation of q(z|x).

        Parameters
        ----------
        x : Tensor, shape (batch, data_dim)
            Data.

        Returns
        -------
        loc : Tensor, shape (batch, latent_dim)
            Means.
        log_scale : Tensor, shape (batch, latent_dim)
            Logarithms of the standard deviations.
        """
        loc, log_scale = self.encoder(x)
        return loc, log_scale

    def decode(self, z: Tensor) -> Tensor:
        """Parameters of p(x|z), whose meaning the likelihood knows.

        Parameters
        ----------
        z : Tensor, shape (..., latent_dim)
            Latents.

        Returns
        -------
        Tensor, shape (..., data_dim * likelihood.num_params)
            Network output, not yet an image: see ``likelihood.mean``.
        """
        params: Tensor = self.decoder(z)
        return params

    def posterior(self, x: Tensor) -> distributions.Distribution:
        """The approximate posterior q(z|x) as a torch distribution.

        Parameters
        ----------
        x : Tensor, shape (batch, data_dim)
            Data.

        Returns
        -------
        torch.distributions.Distribution
            An ``Independent`` normal: batch shape (batch,), event shape (latent_dim,).
        """
        loc, log_scale = self.encode(x)
        return distributions.Independent(distributions.Normal(loc, log_scale.exp()), 1)


def mlp_vae(
    data_dim: int,
    latent_dim: int,
    *,
    hidden_dims: Sequence[int] = (400,),
    likelihood: Likelihood | None = None,
    activation: type[nn.Module] = nn.ReLU,
) -> VAE:
    """VAE whose encoder and decoder are mirror-image perceptrons.

    Parameters
    ----------
    data_dim, latent_dim : int
        Dimensions D of the data and K of the latents.
    hidden_dims : sequence of int
        Hidden dimensions of the encoder; the decoder's are the reverse.
    likelihood : Likelihood, optional
        What the decoder's output means; `BernoulliLikelihood` if left out.
    activation : type of nn.Module
        Class of the activation.

    Returns
    -------
    VAE
        With freshly initialised weights, drawn from torch's global generator.

    Examples
    --------
    >>> sum(p.numel() for p in mlp_vae(784, 20).parameters())
    652824
    """
    likelihood = BernoulliLikelihood() if likelihood is None else likelihood
    encoder = Encoder(mlp([data_dim, *hidden_dims, 2 * latent_dim], activation=activation))
    output_dim = data_dim * likelihood.num_params
    decoder = Decoder(mlp([latent_dim, *reversed(hidden_dims), output_dim], activation=activation))
    return VAE(encoder, decoder, likelihood)
