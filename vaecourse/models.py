"""Models: networks together with a `likelihoods.Likelihood`, which says what their output means.

Losses live in `objectives`, training in `training`.
"""

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, distributions, nn

from vaecourse._checks import check_count, check_floating
from vaecourse.likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood
from vaecourse.networks import Decoder, Encoder, mlp

AnyLikelihood = TypeVar("AnyLikelihood", bound=Likelihood)


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
        self.likelihood = GaussianLikelihood() if likelihood is None else _checked_likelihood(likelihood)

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


class VAE(nn.Module):
    """Variational autoencoder: encoder, decoder, and an exchangeable likelihood.

    The prior is the standard normal.  Networks may be convolutional: leading sample dimensions are
    folded into one before the decoder sees them.

    Parameters
    ----------
    encoder : nn.Module
        Maps data (batch, *event) to ``loc`` and ``log_scale`` of q(z|x), each (batch, latent_dim).
    decoder : nn.Module
        Maps latents (batch, latent_dim) to the likelihood's parameters, (batch, *event) for most.
    likelihood : Likelihood
        What the decoder's output means.
    latent_dim : int, optional
        Number of latents, which only `sample` needs to be told.

    Raises
    ------
    TypeError
        If a network is not an ``nn.Module``, or `likelihood` not a `likelihoods.Likelihood`.

    References
    ----------
    Kingma and Welling, Auto-Encoding Variational Bayes (2014).

    Examples
    --------
    >>> vae = mlp_vae(784, 20)
    >>> x = torch.zeros(5, 784)
    >>> vae(x).shape, vae.reconstruct(x).shape, vae.sample(3).shape
    (torch.Size([5, 784]), torch.Size([5, 784]), torch.Size([3, 784]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        latent_dim: int | None = None,
    ) -> None:
        super().__init__()
        for name, network in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(network, nn.Module):
                raise TypeError(f"{name} must be a network, an object of an nn.Module, got {network!r}")
        if latent_dim is not None:
            check_count("latent_dim", latent_dim)
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = _checked_likelihood(likelihood)
        self.latent_dim = latent_dim

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Parameters of p(x|z) at one draw of z from q(z|x): (batch, *event) to (batch, ...)."""
        loc, log_scale = self.encode(x)
        eps = torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)
        return self.decode(loc + log_scale.exp() * eps)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Mean of p(x|z) at the mean of q(z|x), without noise and without gradient.

        Parameters
        ----------
        x : Tensor, shape (batch, *event)
            Data.

        Returns
        -------
        Tensor, shape (batch, *event)
            In the unit of the data.
        """
        loc, _ = self.encode(x)
        return self.likelihood.mean(self.decode(loc))

    @torch.no_grad()
    def sample(
        self, num_images: int, *, pixel_noise: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws of z from the prior, decoded, without gradient.

        Parameters
        ----------
        num_images : int
            How many draws.
        pixel_noise : bool
            Whether to draw each pixel from p(x|z), as data of this model would look; the mean of
            p(x|z), the usual picture, if not.
        generator : torch.Generator, optional
            Source of randomness, on the device of the weights; the global one if left out.

        Returns
        -------
        Tensor, shape (num_images, *event)
            In the unit of the data.

        Raises
        ------
        ValueError
            If `num_images` is below 1, or the model was made without `latent_dim`.
        """
        check_count("num_images", num_images)
        if self.latent_dim is None:
            raise ValueError("sample needs the number of latents: make the model as VAE(..., latent_dim=20)")
        weight = next(self.decoder.parameters())
        shape = num_images, self.latent_dim
        z = torch.randn(shape, generator=generator, dtype=weight.dtype, device=weight.device)
        params = self.decode(z)
        if pixel_noise:
            return self.likelihood.sample(params, generator=generator)
        return self.likelihood.mean(params)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log standard deviation of q(z|x).

        Parameters
        ----------
        x : Tensor, shape (batch, *event)
            Data.

        Returns
        -------
        loc : Tensor, shape (batch, latent_dim)
            Means.
        log_scale : Tensor, shape (batch, latent_dim)
            Logarithms of the standard deviations.

        Raises
        ------
        ValueError
            If `x` is not floating point, or lacks a batch dimension.
        TypeError
            If the encoder does not return a pair.
        """
        check_floating("x", x)
        if x.ndim < 2:
            raise ValueError(
                f"x must have shape (batch, *event), got {tuple(x.shape)}: one example is x[None]"
            )
        output = self.encoder(x)
        # unpacking one tensor would take two examples for loc and log_scale
        if not isinstance(output, tuple | list) or len(output) != 2:
            raise TypeError(
                f"the encoder must return loc and log_scale, got {type(output).__name__}: "
                "networks.Encoder(network) splits the network's last dimension into the two"
            )
        loc, log_scale = output
        return loc, log_scale

    def decode(self, z: Tensor) -> Tensor:
        """Parameters of p(x|z), whose meaning the likelihood knows.

        Parameters
        ----------
        z : Tensor, shape (..., latent_dim)
            Latents.

        Returns
        -------
        Tensor, shape (..., *event)
            Network output, not yet an image: see ``likelihood.mean``.
        """
        if z.ndim < 3:
            return cast("Tensor", self.decoder(z))
        params = self.decoder(z.flatten(0, -2))  # (samples, batch, K) -> (samples * batch, K)
        return cast("Tensor", params.reshape(*z.shape[:-1], *params.shape[1:]))

    def posterior(self, x: Tensor) -> distributions.Distribution:
        """The approximate posterior q(z|x) as a torch distribution.

        Parameters
        ----------
        x : Tensor, shape (batch, *event)
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

    Raises
    ------
    TypeError
        If `likelihood` is a word or a class, not an object, or `activation` not a class.
    ValueError
        If a dimension is not a positive whole number.

    Examples
    --------
    >>> sum(p.numel() for p in mlp_vae(784, 20).parameters())
    652824
    """
    likelihood = BernoulliLikelihood() if likelihood is None else _checked_likelihood(likelihood)
    if isinstance(hidden_dims, int):
        raise ValueError(
            f"hidden_dims must be a sequence, ({hidden_dims},) for one hidden layer, got a number"
        )
    encoder = Encoder(mlp([data_dim, *hidden_dims, 2 * latent_dim], activation=activation))
    output_dim = data_dim * likelihood.num_params
    decoder = Decoder(mlp([latent_dim, *reversed(hidden_dims), output_dim], activation=activation))
    return VAE(encoder, decoder, likelihood, latent_dim=latent_dim)


def _checked_likelihood(likelihood: AnyLikelihood) -> AnyLikelihood:
    if not isinstance(likelihood, Likelihood):
        raise TypeError(
            "likelihood must be an object such as GaussianLikelihood() or BernoulliLikelihood() from "
            f"vaecourse.likelihoods, got {likelihood!r}"
        )
    return likelihood
