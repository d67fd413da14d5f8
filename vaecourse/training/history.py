"""What a training run leaves behind besides weights: its losses, or the reason why it ended."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class History:
    """What happened during training, one entry per epoch.

    Attributes
    ----------
    loss : list of float
        Mean loss over the examples of the epoch, measured while the weights changed.
    seconds : list of float
        Wall time of the epoch's training steps.
    validation : list of float
        Mean loss over the validation examples after the epoch, in evaluation mode and with the same
        noise every time; empty if there are none.
    """

    loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)

    def plot(self, *, ax: "Axes | None" = None) -> "Axes":
        """Draw the losses over the epochs.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw; a new figure if left out.

        Returns
        -------
        Axes
            The axes given, or new ones.

        Raises
        ------
        ValueError
            If no epoch has been completed.
        """
        from matplotlib import pyplot as plt
        from matplotlib.ticker import MaxNLocator

        from vaecourse.plotting import plot_curves

        if not self.loss:
            raise ValueError("there is nothing to plot: no epoch has been completed")
        curves = {"training": self.loss, "validation": self.validation}
        ax = plt.figure().subplots() if ax is None else ax
        plot_curves(range(1, len(self.loss) + 1), {name: y for name, y in curves.items() if y}, ax=ax)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylabel("mean loss per example")
        return ax


class TrainingDiverged(FloatingPointError):  # noqa: N818  (a result, which ends a run)
    """The loss, a gradient, or a number inside the loss has become NaN or infinite.

    The weights are those before the bad step (running statistics, of batch norm say, may not be).

    Attributes
    ----------
    epoch, step : int
        Where it happened, both counted from 0; `step` within the epoch.
    reason : str
        What was not finite.
    checkpoint : path or None
        The last checkpoint of the run.
    history : History
        The epochs before.

    Examples
    --------
    >>> print(TrainingDiverged(3, 7, "the loss is nan"))
    training diverged at epoch 3, step 7: the loss is nan; the weights are those before that step; \
    there is no checkpoint
    """

    def __init__(self, epoch: int, step: int, reason: str) -> None:
        super().__init__(epoch, step, reason)
        self.epoch, self.step, self.reason = epoch, step, reason
        self.checkpoint: Path | None = None
        self.history = History()

    def __str__(self) -> str:
        """Everything in one line."""
        saved = f"the last checkpoint is {self.checkpoint}" if self.checkpoint else "there is no checkpoint"
        return (
            f"training diverged at epoch {self.epoch}, step {self.step}: {self.reason}; "
            f"the weights are those before that step; {saved}"
        )
