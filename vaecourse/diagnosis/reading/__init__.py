"""Terms of a loss, read off its gradients: likelihood, KL divergence, reductions, parameters that move."""

import math

from vaecourse.diagnosis.reading.divergence import read_divergence
from vaecourse.diagnosis.reading.fits import TOLERANCE, Reconstruction
from vaecourse.diagnosis.reading.parameters import Parameters, read_parameters
from vaecourse.diagnosis.reading.posteriors import POSTERIORS, Divergence
from vaecourse.diagnosis.reading.reconstruction import read_reconstruction

__all__ = [
    "POSTERIORS",
    "TOLERANCE",
    "Divergence",
    "Parameters",
    "Reconstruction",
    "name_rule",
    "read_divergence",
    "read_parameters",
    "read_reconstruction",
]


def name_rule(ratio: float | None) -> str | None:
    """Reduction that changes a factor by this ratio when the batch is doubled."""
    if ratio is None:
        return None
    for name, expected in (("sum", 1.0), ("mean", 0.5)):
        if math.isclose(ratio, expected, rel_tol=10 * TOLERANCE):
            return name
    return f"reduction with the factor {ratio:.3g} for a batch of twice the size"
