"""Likelihoods, objectives and their diagnosis for a course on variational autoencoders.

What most programs need can be had from the package itself, ``vaecourse.mlp_vae`` for instance;
everything else is imported from the submodule that holds it::

    from vaecourse import fit, mlp_vae, negative_elbo
    from vaecourse.densities import gaussian_nll

Three conventions hold everywhere.  Densities, negative log-likelihoods and
divergences are summed over event dimensions and returned per example, in
nats, with every constant; the batch mean is taken once, in `negative_elbo`.
Gaussians are written with ``loc`` and ``scale`` (the standard deviation), and
networks emit ``log_scale``; Bernoullis are written with ``logits``.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `as` says that the name is meant for others
    from vaecourse.datasets import digits as digits
    from vaecourse.datasets import mnist as mnist
    from vaecourse.datasets import to_unit_interval as to_unit_interval
    from vaecourse.diagnosis import diagnose_loss as diagnose_loss
    from vaecourse.evaluation import nll_estimate as nll_estimate
    from vaecourse.likelihoods import BernoulliLikelihood as BernoulliLikelihood
    from vaecourse.likelihoods import ContinuousBernoulliLikelihood as ContinuousBernoulliLikelihood
    from vaecourse.likelihoods import GaussianLikelihood as GaussianLikelihood
    from vaecourse.likelihoods import LaplaceLikelihood as LaplaceLikelihood
    from vaecourse.models import VAE as VAE
    from vaecourse.models import mlp_vae as mlp_vae
    from vaecourse.objectives import negative_elbo as negative_elbo
    from vaecourse.training import Checkpoints as Checkpoints
    from vaecourse.training import fit as fit

__version__ = "0.1.0"

# Names that can be had from the package itself; importing them imports torch, hence only when asked for.
_MODULES = {
    "VAE": "models",
    "mlp_vae": "models",
    "BernoulliLikelihood": "likelihoods",
    "ContinuousBernoulliLikelihood": "likelihoods",
    "GaussianLikelihood": "likelihoods",
    "LaplaceLikelihood": "likelihoods",
    "negative_elbo": "objectives",
    "fit": "training",
    "Checkpoints": "training",
    "nll_estimate": "evaluation",
    "diagnose_loss": "diagnosis",
    "mnist": "datasets",
    "digits": "datasets",
    "to_unit_interval": "datasets",
}
__all__ = list(_MODULES)
_MORE_MODULES = {"densities", "divergences", "linear_vae", "networks", "plotting"}


def __getattr__(name: str) -> object:
    """Import a name from its module, or a module."""
    if name in {*_MODULES.values(), *_MORE_MODULES}:
        return importlib.import_module(f"vaecourse.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'vaecourse' has no attribute {name!r}; it has {', '.join(_MODULES)}")
    return getattr(importlib.import_module(f"vaecourse.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Names to choose from, those not yet imported too."""
    return [*globals(), *_MODULES]
