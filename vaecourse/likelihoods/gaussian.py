"""The likelihood behind squared errors, and the four ways to set its scale: a small class for each."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn

from vaecourse._checks import as_float, check_finite, check_shapes, positive
from vaecourse.densities import gaussian_nll
from vaecourse.likelihoods.base import Likelihood


class GaussianLikelihood(Likelihood):
    """Independent Gaussians around the network's output, with one of four ways to set their scale.

    Parameters
    ----------
    scale : float or {"learned", "optimal", "per_pixel"}
        A number fixes the standard deviation.  "learned" makes one shared ``log_scale`` a trained
        parameter.  "optimal" sets the shared scale to the root mean squared error of each training
        batch, the analytic maximiser, and keeps a running average for evaluation.  "per_pixel" lets
        the network emit a ``log_scale`` beside each ``loc``: as second half of its last dimension,
        or, for images (..., batch, channels, height, width), of its channels (at four dimensions and
        more).
    initial_scale : float
        Where "learned" starts, and only for it.  Start near the standard deviation of the data: Adam
        moves ``log_scale`` by about its learning rate in a step, not faster.
    min_log_scale : float
        Soft floor of "per_pixel", and only for it: without a floor the likelihood of a constant
        pixel is unbounded.

    Raises
    ------
    ValueError
        If `scale` is neither a positive number nor one of the three words.

    References
    ----------
    Rybkin, Daniilidis and Levine, Simple and Effective VAE Training with Calibrated Decoders (2021).

    Examples
    --------
    >>> likelihood = GaussianLikelihood(2.0)
    >>> likelihood.nll(torch.zeros(1, 2), torch.tensor([[2.0, 4.0]]))  # 1/2 + 4/2 + 2 log 2 + log(2 pi)
    tensor([5.7242])
    """

    way: float | str  # how the scale is set
    options: tuple[str, ...] = ()  # what else this way needs to be told

    def __init_subclass__(cls) -> None:
        """Refuse subclasses elsewhere: which class an object gets is decided here."""
        if cls.__module__ != __name__:
            raise TypeError(
                "GaussianLikelihood has a class for each way to set its scale: subclass Likelihood"
            )

    def __new__(cls, scale: float | str = 1.0, **options: float) -> "GaussianLikelihood":
        """Make an object of the class below that sets the scale in the way asked for."""
        if cls is not GaussianLikelihood:
            return super().__new__(cls)
        ways = {kind.way: kind for kind in (_LearnedScale, _OptimalScale, _PerPixelScale)}
        kind = ways.get(scale) if isinstance(scale, str) else _FixedScale
        if kind is None:
            raise ValueError(
                f"scale must be a positive number, 'learned', 'optimal' or 'per_pixel', got {scale!r}"
            )
        if strange := [name for name in options if name not in kind.options]:
            raise TypeError(f"{strange[0]} does not belong to a GaussianLikelihood with scale={scale!r}")
        return super().__new__(kind)

    def __init__(
        self, scale: float | str = 1.0, *, initial_scale: float = 1.0, min_log_scale: float = -6.0
    ) -> None:
        super().__init__()

    @property
    def scale(self) -> float | Tensor:
        """Shared standard deviation: the number given, the learned one, or the optimum.

        Returns
        -------
        float or Tensor, shape ()
            In the unit of the data; the optimum of the last batch in training, the running average
            in evaluation.

        Raises
        ------
        RuntimeError
            If the scale is per pixel, or "optimal" and no training batch has been seen yet.
        """
        raise RuntimeError("a per-pixel scale depends on the input: use distribution(params).stddev")

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        return gaussian_nll(x, *self._loc_and_scale(params))

    def distribution(self, params: Tensor) -> distributions.Normal:
        return distributions.Normal(*self._loc_and_scale(params))

    def mean(self, params: Tensor) -> Tensor:
        return self._loc(params)

    @torch.no_grad()
    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        loc, scale = self._loc_and_scale(params)
        return loc + scale * torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)

    def extra_repr(self) -> str:
        return f"scale={self.way!r}"

    def _get_name(self) -> str:
        return "GaussianLikelihood"

    def _loc(self, params: Tensor) -> Tensor:
        return as_float("params", params)

    def _loc_and_scale(self, params: Tensor) -> tuple[Tensor, float | Tensor]:
        return self._loc(params), self.scale


class _FixedScale(GaussianLikelihood):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.way = positive("scale", scale)

    @property
    def scale(self) -> float:
        return float(self.way)


class _LearnedScale(GaussianLikelihood):
    way = "learned"
    options = ("initial_scale",)

    def __init__(self, scale: str, *, initial_scale: float = 1.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(positive("initial_scale", initial_scale)).log())

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()


class _OptimalScale(GaussianLikelihood):
    way = "optimal"
    mean_squared_error: Tensor
    num_updates: Tensor

    def __init__(self, scale: str) -> None:
        super().__init__()
        self.register_buffer("mean_squared_error", torch.tensor(math.nan))
        self.register_buffer("num_updates", torch.tensor(0))
        self.scale_of_batch: Tensor | None = None

    @property
    def scale(self) -> Tensor:
        if self.training and self.scale_of_batch is not None:
            return self.scale_of_batch
        if not torch.compiler.is_compiling() and self.num_updates == 0:
            raise RuntimeError(
                "the optimal scale is estimated from training batches and none has been seen: "
                "call nll in training mode first"
            )
        return self.mean_squared_error.sqrt()

    def _load_from_state_dict(self, *arguments: Any, **more: Any) -> None:
        super()._load_from_state_dict(*arguments, **more)
        self.scale_of_batch = None

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        if self.training:
            self._update_scale(x, params)
        return super().nll(x, params)

    @torch.no_grad()
    def _update_scale(self, x: Tensor, params: Tensor) -> None:
        """Take the root mean squared error of the batch; by the envelope theorem it needs no gradient."""
        x, params = as_float("x", x), as_float("params", params)
        check_shapes(x, "params", params)
        check_finite(x=x, params=params)  # a bad batch must not spoil the running average
        batch_mse = (x - params).square().mean()
        self.num_updates += 1
        weight = torch.clamp(1 / self.num_updates, min=0.01)  # plain average at first, then exponential
        running = torch.where(self.num_updates == 1, batch_mse, self.mean_squared_error)
        self.mean_squared_error.copy_(torch.lerp(running.float(), batch_mse.float(), weight))
        self.scale_of_batch = batch_mse.sqrt()


class _PerPixelScale(GaussianLikelihood):
    way = "per_pixel"
    options = ("min_log_scale",)
    num_params = 2

    def __init__(self, scale: str, *, min_log_scale: float = -6.0) -> None:
        super().__init__()
        if not isinstance(min_log_scale, float | int) or not math.isfinite(min_log_scale):
            raise ValueError(f"min_log_scale must be a finite number, got {min_log_scale!r}")
        self.min_log_scale = min_log_scale

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        loc, scale = self._loc_and_scale(params)
        if loc.shape[-x.ndim :] != x.shape:
            raise ValueError(
                f"params of shape {tuple(params.shape)} hold loc and log_scale of shape {tuple(loc.shape)}, "
                f"which must have the shape of x after any sample dimensions: x has {tuple(x.shape)}; emit "
                "2 D numbers for flat data, 2 C channels for images (batch, C, height, width)"
            )
        return gaussian_nll(x, loc, scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, min_log_scale={self.min_log_scale}"

    def _loc(self, params: Tensor) -> Tensor:
        return self._loc_and_scale(params)[0]

    def _loc_and_scale(self, params: Tensor) -> tuple[Tensor, Tensor]:
        dim = -3 if params.ndim >= 4 else -1  # (..., channels, height, width), or (..., batch, D)
        if params.shape[dim] % 2:
            raise ValueError(
                "with a per-pixel scale the network must emit loc and log_scale, twice the data's last "
                f"dimension, or twice the channels of images; got an odd size: {tuple(params.shape)}"
            )
        loc, log_scale = as_float("params", params).chunk(2, dim=dim)
        return loc, torch.exp(self.min_log_scale + F.softplus(log_scale - self.min_log_scale))
