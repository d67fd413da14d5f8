"""What determines a training run, and the model that it starts from."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vaecourse.likelihoods import (
    BernoulliLikelihood,
    ContinuousBernoulliLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    Likelihood,
)
from vaecourse.models import VAE, mlp_vae

CHOICES = {
    "data": ("mnist", "digits"),
    "likelihood": ("bernoulli", "continuous-bernoulli", "gaussian", "laplace"),
    "activation": ("relu", "tanh"),
    "schedule": ("constant", "cosine", "one-cycle"),
    "precision": ("float32", "bf16"),
}
LOWEST = {
    "latent_dim": 1,
    "importance_samples": 1,
    "num_epochs": 1,
    "batch_size": 1,
    "micro_batch_size": 1,
    "num_processes": 1,
    "seed": 0,
}
DATA_DIM = {"mnist": 784, "digits": 64}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a training run.

    The device, torch.compile and the rhythm of checkpoints are left out: they change the last
    bits of a result and its speed, not what is estimated.

    Parameters
    ----------
    data : {"mnist", "digits"}
        Images, scaled to [0, 1].
    likelihood : {"bernoulli", "continuous-bernoulli", "gaussian", "laplace"}
        What the decoder's output means.
    scale : float or {"learned", "optimal", "per_pixel"}
        Standard deviation of a Gaussian, or scale b of a Laplace distribution (a number only).
    latent_dim : int
        Number of latents K.
    hidden_dims : sequence of int
        Hidden dimensions of the encoder; the decoder's are the reverse.
    activation : {"relu", "tanh"}
        Between the layers.
    pixel_bias : bool
        Whether the decoder's last bias starts at the log-odds of each pixel's mean over the training
        images; for a Bernoulli likelihood.
    binarize : bool
        Whether each grey level is the probability of a black pixel, drawn anew at every presentation.
    beta : float
        Weight of the KL term, not negative.
    importance_samples : int
        1 trains with the ELBO, k > 1 with the importance-weighted bound of k samples, where beta is 1.
    num_epochs, batch_size : int
        Passes over the training images, and images per optimiser step.
    learning_rate : float
        Of Adam; the highest one if there is a schedule.
    schedule : {"constant", "cosine", "one-cycle"}
        Course of the learning rate over the whole run.
    precision : {"float32", "bf16"}
        Of matrix products.
    micro_batch_size : int, optional
        Images in memory at a time; whole batches if left out.
    num_processes : int
        Processes that share each batch.
    seed : int
        Of the weights, the order of the images, and all noise.

    Raises
    ------
    ValueError
        If a value is of the wrong type or out of range, or belongs to another likelihood or bound.

    Examples
    --------
    >>> config = RunConfig(data="digits", likelihood="gaussian", scale="learned", hidden_dims=[32])
    >>> RunConfig.from_json(config.to_json()) == config
    True
    """

    data: str = "mnist"
    likelihood: str = "bernoulli"
    scale: float | str = 1.0
    latent_dim: int = 20
    hidden_dims: Sequence[int] = (400,)
    activation: str = "relu"
    pixel_bias: bool = False
    binarize: bool = False
    beta: float = 1.0
    importance_samples: int = 1
    num_epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    schedule: str = "constant"
    precision: str = "float32"
    micro_batch_size: int | None = None
    num_processes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run, and bring equal values to equal form."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, lowest in LOWEST.items():
            value = getattr(self, name)
            if not (_is_count(value, lowest) or (name == "micro_batch_size" and value is None)):
                raise ValueError(f"{name} must be a whole number from {lowest} on, got {value!r}")
        dims = self.hidden_dims
        if not isinstance(dims, list | tuple) or not all(_is_count(dim, 1) for dim in dims):
            raise ValueError(f"hidden_dims must be whole numbers from 1 on, got {dims!r}")
        for name in ("pixel_bias", "binarize"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name, is_allowed in (("beta", self.beta == 0), ("learning_rate", False)):
            value = getattr(self, name)
            if not (is_allowed or (_is_number(value) and value > 0)):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if self.pixel_bias and self.likelihood != "bernoulli":
            raise ValueError(f"pixel_bias is for a bernoulli likelihood, got {self.likelihood!r}")
        if self.importance_samples > 1 and self.beta != 1:
            raise ValueError(f"the importance-weighted bound has no KL term to weigh, got beta {self.beta!r}")
        object.__setattr__(self, "hidden_dims", tuple(dims))
        _make_likelihood(self)

    def to_json(self) -> str:
        """The configuration as JSON text, one entry a line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """Read what `to_json` returned; missing entries stand for their defaults, others are refused."""
        entries = json.loads(text)
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(entries, dict):
            raise ValueError(f"a configuration is a JSON object, got {type(entries).__name__}")
        if unknown := [name for name in entries if name not in known]:
            raise ValueError(f"a run has no setting {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**entries)

    @property
    def caveat(self) -> str | None:
        """What a reader of the results must know, if anything."""
        if self.likelihood == "bernoulli" and not self.binarize:
            return (
                "a Bernoulli likelihood on grey levels is a cross-entropy, not a log-likelihood "
                "of the images: see --binarize"
            )
        return None


def build_model(config: RunConfig) -> VAE:
    """The untrained model of a run, on the CPU; torch's global random state stays as it is.

    Parameters
    ----------
    config : RunConfig
        Its seed decides the weights.

    Returns
    -------
    VAE
        Encoder and decoder are mirror-image perceptrons.

    Examples
    --------
    >>> build_model(RunConfig(data="digits", latent_dim=3)).encode(torch.zeros(5, 64))[0].shape
    torch.Size([5, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return mlp_vae(
            DATA_DIM[config.data],
            config.latent_dim,
            hidden_dims=config.hidden_dims,
            likelihood=_make_likelihood(config),
            activation=ACTIVATIONS[config.activation],
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value < 2**63


def _make_likelihood(config: RunConfig) -> Likelihood:
    if not (isinstance(config.scale, str) or _is_number(config.scale)):
        raise ValueError(f"scale must be a number or a word, got {config.scale!r}")
    if config.likelihood == "gaussian":
        return GaussianLikelihood(config.scale)  # type: ignore[arg-type]  # checked there
    if config.likelihood == "laplace":
        if isinstance(config.scale, str):
            raise ValueError(f"scale of a laplace likelihood must be a number, got {config.scale!r}")
        return LaplaceLikelihood(config.scale)
    if config.scale != 1:
        raise ValueError(f"a {config.likelihood} likelihood has no scale, got {config.scale!r}")
    return BernoulliLikelihood() if config.likelihood == "bernoulli" else ContinuousBernoulliLikelihood()
