"""A loss called at random points: how it is called, and value and gradients there."""

from vaecourse.diagnosis.probing.calling import (
    FORM,
    ROLES,
    Binding,
    LossError,
    LossFn,
    bind,
    closure_of,
    unchanged_buffers,
)
from vaecourse.diagnosis.probing.experiment import (
    Experiment,
    find_parameters,
    is_same,
    probe_positive,
    random_loss,
    run_experiment,
)
from vaecourse.diagnosis.probing.probes import REGIONS, Probe, Prober

__all__ = [
    "FORM",
    "REGIONS",
    "ROLES",
    "Binding",
    "Experiment",
    "LossError",
    "LossFn",
    "Probe",
    "Prober",
    "bind",
    "closure_of",
    "find_parameters",
    "is_same",
    "probe_positive",
    "random_loss",
    "run_experiment",
    "unchanged_buffers",
]
