"""The likelihood behind absolute errors."""

import torch
from torch import Tensor, distributions

from vaecourse._checks import positive
from vaecourse.densities import laplace_nll
from vaecourse.likelihoods.base import Likelihood


class LaplaceLikelihood(Likelihood):
    """Independent Laplace variables around the network's output: the likelihood behind the L1 loss.

    Parameters
    ----------
    scale : float
        The scale b, positive; the standard deviation is ``sqrt(2) * b``.

    Raises
    ------
    ValueError
        If `scale` is not a positive number.

    Examples
    --------
    >>> LaplaceLikelihood(1.0).nll(torch.tensor([[3.0]]), torch.zeros(1, 1))  # 3 + log 2
    tensor([3.6931])
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = positive("scale", scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        return laplace_nll(x, params, self.scale)

    def distribution(self, params: Tensor) -> distributions.Laplace:
        return distributions.Laplace(params, self.scale)

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        # the difference of two exponentials is Laplace
        first, second = torch.empty_like(params), torch.empty_like(params)
        first.exponential_(generator=generator)
        second.exponential_(generator=generator)
        return params.detach() + self.scale * (first - second)
