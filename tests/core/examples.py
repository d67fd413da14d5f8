"""Numbers, likelihoods and models that several files of tests draw on."""

from functools import partial

import pytest
import torch
from torch import Tensor

from vaecourse import likelihoods
from vaecourse.linear_vae import LinearVAE

F32, F64 = torch.float32, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])

# One row per likelihood: a new one only needs its row here.
LIKELIHOODS = {
    "gaussian-fixed": partial(likelihoods.GaussianLikelihood, 0.3),
    "gaussian-learned": partial(likelihoods.GaussianLikelihood, "learned"),
    "gaussian-optimal": partial(likelihoods.GaussianLikelihood, "optimal"),
    "gaussian-per_pixel": partial(likelihoods.GaussianLikelihood, "per_pixel"),
    "laplace": partial(likelihoods.LaplaceLikelihood, 0.3),
    "bernoulli": likelihoods.BernoulliLikelihood,
    "continuous_bernoulli": likelihoods.ContinuousBernoulliLikelihood,
}
EVERY_LIKELIHOOD = pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(*shape: int, seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1]."""
    return torch.rand(shape, dtype=F64, generator=generator(seed))


def normal(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal numbers, as a network might put out."""
    return torch.randn(shape, dtype=F64, generator=generator(seed))


def one(value: float, dtype: torch.dtype = F64) -> Tensor:
    return torch.full((1, 1), value, dtype=dtype)


def linear_vae(scale: float | str = 0.6) -> LinearVAE:
    """A linear VAE (D = 5, K = 2) whose q(z|x) is not the exact posterior."""
    model, numbers = LinearVAE(data_dim=5, latent_dim=2, scale=scale).double(), generator(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, dtype=F64, generator=numbers))
    return model.eval()


def fitted_vae(**arguments: float) -> LinearVAE:
    """A linear VAE of the same size, fitted to data: its q(z|x) is the exact posterior."""
    x = data(50, 5) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2], dtype=F64)
    return LinearVAE.from_ppca(x, 2, **arguments)
