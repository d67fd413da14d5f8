"""Likelihood objects that models carry, and the densities behind them.

A likelihood turns a network's output into a probability statement about data.
A model that holds one can exchange it for another without any other change.
"""

from vaecourse.likelihoods.base import Likelihood
from vaecourse.likelihoods.bernoulli import BernoulliLikelihood, ContinuousBernoulliLikelihood
from vaecourse.likelihoods.gaussian import GaussianLikelihood
from vaecourse.likelihoods.laplace import LaplaceLikelihood

__all__ = [
    "BernoulliLikelihood",
    "ContinuousBernoulliLikelihood",
    "GaussianLikelihood",
    "LaplaceLikelihood",
    "Likelihood",
]
