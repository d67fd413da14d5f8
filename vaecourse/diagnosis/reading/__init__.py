"""Terms of a loss, read off its gradients: likelihood, KL divergence, reductions, parameters that move."""

from vaecourse.diagnosis.reading.divergence import read_divergence
from vaecourse.diagnosis.reading.fits import TOLERANCE, Reconstruction
from vaecourse.diagnosis.reading.judging import Judgement, is_mask, judge
from vaecourse.diagnosis.reading.parameters import Parameters, read_parameters
from vaecourse.diagnosis.reading.posteriors import POSTERIORS, Divergence
from vaecourse.diagnosis.reading.reconstruction import read_reconstruction

__all__ = [
    "POSTERIORS",
    "TOLERANCE",
    "Divergence",
    "Judgement",
    "Parameters",
    "Reconstruction",
    "is_mask",
    "judge",
    "read_divergence",
    "read_parameters",
    "read_reconstruction",
]
