"""What determines a training run: the name, choices, bounds, default and help of each setting, in one place.

The command line is made from the fields of `RunConfig`, so nothing about a setting is said twice.
The text under a field is its help.  torch is not imported here: help and mistakes are answered at once.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter, Token
from cyclopts.validators import Number

MODEL = Parameter(group=Group("The model", sort_key=1))
TRAINING = Parameter(group=Group("The training", sort_key=2))
NAMED_EPOCHS, NAMED_PROCESSES = Parameter(name="--epochs"), Parameter(name="--processes")
SEVERAL = Parameter(consume_multiple=True, show_default=lambda values: " ".join(map(str, values)))


def _whole(kind: Any, tokens: Sequence[Token]) -> int | tuple[int, ...]:
    """Read whole numbers; cyclopts would round others."""
    for token in tokens:
        if not re.fullmatch(r"[+-]?\d+", token.value):
            raise ValueError(f'"{token.value}" is not a whole number.')
    values = tuple(int(token.value) for token in tokens)
    return values if get_origin(kind) is tuple else values[0]


WHOLE = Parameter(converter=_whole)
Whole = Annotated[int, WHOLE]
Count = Annotated[int, WHOLE, Parameter(validator=Number(gte=1))]
MaybeCount = Annotated[int | None, WHOLE, Parameter(validator=Number(gte=1))]
Natural = Annotated[int, WHOLE, Parameter(validator=Number(gte=0))]
Positive = Annotated[float, Parameter(validator=Number(gt=0))]
Weight = Annotated[float, Parameter(validator=Number(gte=0))]
Data = Literal["mnist", "digits"]
LikelihoodName = Literal["bernoulli", "continuous-bernoulli", "gaussian", "laplace"]
Scale = float | Literal["learned", "optimal", "per_pixel"]
Dims = Annotated[tuple[int, ...], WHOLE, Parameter(validator=Number(gte=1))]


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a training run; a value that is impossible is a `ValueError`.

    The device, torch.compile and the rhythm of checkpoints are left out: they change the last
    bits of a result and its speed, not what is estimated.

    Examples
    --------
    >>> config = RunConfig(data="digits", likelihood="gaussian", scale="learned", hidden_dims=[32])
    >>> RunConfig.from_json(config.to_json()) == config
    True
    """

    data: Annotated[Data, MODEL] = "mnist"
    """Images, scaled to [0, 1]."""
    likelihood: Annotated[LikelihoodName, MODEL] = "bernoulli"
    """Distribution of a pixel given z."""
    scale: Annotated[Scale, MODEL] = 1.0
    """Standard deviation of a gaussian; scale b of a laplace, which must be a number."""
    latent_dim: Annotated[Count, MODEL] = 20
    """Number of latents."""
    hidden_dims: Annotated[Dims, MODEL, SEVERAL] = (400,)
    """Widths of the encoder's hidden layers; the decoder's are the reverse."""
    activation: Annotated[Literal["relu", "tanh"], MODEL] = "relu"
    """Nonlinearity between the layers."""
    pixel_bias: Annotated[bool, MODEL] = False
    """Start the output at the log-odds of each pixel's mean; for a bernoulli."""
    binarize: Annotated[bool, MODEL] = False
    """Take each grey level as the probability that the pixel is 1, and draw anew each time."""
    beta: Annotated[Weight, MODEL] = 1.0
    """Weight of the KL term."""
    importance_samples: Annotated[Count, MODEL] = 1
    """1 trains with the ELBO, more with the importance-weighted bound of that many samples."""
    num_epochs: Annotated[Count, TRAINING, NAMED_EPOCHS] = 10
    """Passes over the images."""
    batch_size: Annotated[Count, TRAINING] = 128
    """Images per optimiser step."""
    learning_rate: Annotated[Positive, TRAINING] = 1e-3
    """Learning rate of Adam; the highest one if there is a schedule."""
    schedule: Annotated[Literal["constant", "cosine", "one-cycle"], TRAINING] = "constant"
    """Course of the learning rate over the whole run."""
    precision: Annotated[Literal["float32", "bf16"], TRAINING] = "float32"
    """Precision of matrix products."""
    micro_batch_size: Annotated[MaybeCount, TRAINING] = None
    """Images in memory at a time; the whole batch if left out."""
    num_processes: Annotated[Count, TRAINING, NAMED_PROCESSES] = 1
    """Processes that share each batch, one per GPU where there are GPUs."""
    seed: Annotated[Natural, TRAINING] = 0
    """Seed of the weights, the order of the images, and all noise."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, and bring equal values to equal form."""
        for name, hint in get_type_hints(RunConfig, include_extras=True).items():
            value, (kind, *options) = getattr(self, name), get_args(hint)
            if not _is(value, kind):
                raise ValueError(f"{name} must be {_words(kind)}, got {value!r}")
            try:
                for validator in itertools.chain.from_iterable(option.validator for option in options):
                    validator(kind, value)
            except ValueError as error:
                raise ValueError(f"{name} {str(error).rstrip('.').lower()}, got {value!r}") from error
        object.__setattr__(self, "hidden_dims", tuple(self.hidden_dims))
        if isinstance(self.scale, str):
            if self.likelihood == "laplace":
                raise ValueError(f"scale of a laplace likelihood must be a number, got {self.scale!r}")
        elif self.scale <= 0:
            raise ValueError(f"scale must be > 0, got {self.scale!r}")
        if "bernoulli" in self.likelihood and self.scale != 1:
            raise ValueError(f"a {self.likelihood} likelihood has no scale, got {self.scale!r}")
        if self.pixel_bias and self.likelihood != "bernoulli":
            raise ValueError(f"pixel_bias is for a bernoulli likelihood, got {self.likelihood!r}")
        if self.importance_samples > 1 and self.beta != 1:
            raise ValueError(f"the importance-weighted bound has no KL term to weigh, got beta {self.beta!r}")

    def to_json(self) -> str:
        """The configuration as JSON text, one entry a line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @property
    def identity(self) -> str:
        """What tells this run from others: its settings, without the epochs if these may grow."""
        settings = dataclasses.asdict(self)
        if self.schedule == "constant":
            del settings["num_epochs"]
        return json.dumps(settings, indent=2)

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


def _is(value: object, kind: Any) -> bool:
    """Whether a value is of an annotated type; a list passes for a tuple, because JSON has no tuples."""
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_is(value, part) for part in parts)
    if get_origin(kind) is Literal:
        return value in parts
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_is(item, parts[0]) for item in value)
    if isinstance(value, bool) or kind in (bool, NoneType):
        return type(value) is kind
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, int) and value < 2**63


def _words(kind: Any) -> str:
    """How a sentence says what a value of an annotated type is."""
    names = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "left out"}
    if kind in names:
        return names[kind]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return "whole numbers" if get_origin(kind) is tuple else " or ".join(map(_words, get_args(kind)))
