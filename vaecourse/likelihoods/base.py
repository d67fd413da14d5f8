"""What every likelihood can do."""

import abc

import torch
from torch import Tensor, distributions, nn


class Likelihood(nn.Module, abc.ABC):
    """What a model says about data given the numbers that its network puts out: p(x | params).

    Subclasses define `nll`, `distribution` and `sample`, so that a model can exchange one
    likelihood for another without any other change, and state numbers that they fix in
    ``extra_repr``, so that a checkpoint of another model is recognised.

    Attributes
    ----------
    num_params : int
        Numbers that the network must emit per data dimension.
    """

    num_params: int = 1

    @abc.abstractmethod
    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        """Negative log-likelihood of `x`, nats per example.

        Parameters
        ----------
        x : Tensor, shape (batch, *event)
            Data.
        params : Tensor, shape (..., batch, *event)
            Network output; its last dimension is `num_params` times that of `x`.

        Returns
        -------
        Tensor, shape (..., batch)
            Nats, summed over the event dimensions.
        """

    @abc.abstractmethod
    def distribution(self, params: Tensor) -> distributions.Distribution:
        """The elementwise distribution as a torch object, for inspection and as a second opinion.

        Parameters
        ----------
        params : Tensor, shape (..., batch, *event)
            Network output.

        Returns
        -------
        torch.distributions.Distribution
            Not summed over event dimensions: wrap it in ``Independent`` for that.
        """

    def mean(self, params: Tensor) -> Tensor:
        """Mean of the distribution, which is what papers usually show as "the reconstruction".

        Parameters
        ----------
        params : Tensor, shape (..., batch, *event)
            Network output.

        Returns
        -------
        Tensor, shape (..., batch, *event)
            The mean, in the unit of the data.
        """
        return self.distribution(params).mean

    @abc.abstractmethod
    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One draw from the distribution, without gradient.

        Parameters
        ----------
        params : Tensor, shape (..., batch, *event)
            Network output.
        generator : torch.Generator, optional
            Source of randomness, on the device of `params`; the global one if left out.

        Returns
        -------
        Tensor, shape (..., batch, *event)
            The draw, in the unit of the data.
        """
