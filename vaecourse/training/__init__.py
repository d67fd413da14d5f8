"""One training loop for any loss: it minimises what it is given and does not know what an ELBO is.

``loop`` runs the epochs over ``batches``, ``step`` takes one optimiser step, ``history`` is what comes
back, ``resuming`` lets a stopped run go on as
if it had not stopped, ``checkpoints`` holds the files, ``devices`` says what this machine has, and
``processes`` what many processes share.
"""

from vaecourse.training.checkpoints import CheckpointError, Checkpoints, load_checkpoint, save_checkpoint
from vaecourse.training.devices import available_devices, choose_device, compiler_problem
from vaecourse.training.history import History, TrainingDiverged
from vaecourse.training.loop import fit

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "History",
    "TrainingDiverged",
    "available_devices",
    "choose_device",
    "compiler_problem",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
]
