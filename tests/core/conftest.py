"""What tests of the mathematics compare with."""

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from torch import Tensor

mpmath.mp.dps = 60  # digits; enough for exp(t) - 1 - t at t = 1e-15, where 30 of them cancel


@pytest.fixture(scope="session")
def ulps() -> Callable[[Tensor, mpmath.mpf], float]:
    """Distance of a tensor's one value from the truth, in units in the last place of its dtype."""

    def distance(value: Tensor, truth: mpmath.mpf) -> float:
        dtype = value.detach().numpy().dtype.type
        unit = np.spacing(dtype(abs(float(truth))))  # of a subnormal number: the smallest one
        return float(abs(mpmath.mpf(value.item()) - truth) / mpmath.mpf(float(unit)))

    return distance
