"""The result of `sdpo signal`, and how it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdpo.commands.signal.measured import Measured
from sdpo.config import Config

MEAN = "mean"
"""The direction of the gradient of the reward averaged over the step counts."""


@dataclass(frozen=True)
class Options:
    """How a signal is measured.

    Attributes:
        groups: n, the groups that are sampled.
        direction_samples: single trajectories, at each step count, from which the reward's own gradient is estimated.
        dimension: the dimension of the random projection.
    """

    groups: int = 720
    direction_samples: int = 180
    dimension: int = 4096


@dataclass(frozen=True)
class SignalResult:
    """The measured signal of a run's algorithm, and of its alternatives.

    Attributes:
        config: the configuration.
        options: how it was measured.
        parameters: the number of trained parameters that have a gradient.
        directions: the names of the directions towards which the signal is measured.
        measured: the alternatives; the first is the run's own setting.
        left_out: the reasons why others have no meaning, by name.
        seconds: the time that all of it took.
    """

    config: Config
    options: Options
    parameters: int
    directions: Sequence[str]
    measured: Sequence[Measured]
    left_out: dict[str, str]
    seconds: float

    def named(self, name: str) -> Measured | None:
        """The alternative of that name, if it was measured."""
        return next((m for m in self.measured if m.alternative.name == name), None)

    @property
    def main_direction(self) -> str:
        """The direction by which alternatives are ranked: the last one."""
        return self.directions[-1]
