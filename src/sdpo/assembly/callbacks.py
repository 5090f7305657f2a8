"""Callbacks: the user's own code at the ends of epochs, evaluations, and the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo.errors import UserError, cause
from sdpo.evaluation.record import Evaluation

if TYPE_CHECKING:
    from sdpo.assembly.parts import Parts


@dataclass(frozen=True)
class RunState:
    """The state of a run that a callback sees.

    Attributes:
        epoch: the epoch that has ended; 0 is the base model.
        epochs: the last epoch of the run.
        run_dir: the run's directory.
        metrics: the epoch's row of `metrics.jsonl`; the evaluation's means where there is no such row.
        evaluation: the latest evaluation, or None where there has been none since the run was started or resumed.
        parts: the parts of the run; a callback must not change them.
    """

    epoch: int
    epochs: int
    run_dir: Path
    metrics: Mapping[str, Any]
    evaluation: Evaluation | None
    parts: Parts


class Callback:
    """The base of callbacks; a subclass overrides the methods that it needs.

    Callbacks are called on the main process only. A callback that raises ends the run with a message that names it;
    the last epoch is saved.
    """

    def on_epoch_end(self, state: RunState) -> None:
        """Called after each epoch, when it has been saved."""

    def on_evaluate(self, state: RunState) -> None:
        """Called after each evaluation, when its files have been written."""

    def on_end(self, state: RunState) -> None:
        """Called once, when the result and the report have been written."""


class Callbacks(Callback):
    """Calls several callbacks in order.

    Args:
        callbacks: the user's callbacks.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    def on_epoch_end(self, state: RunState) -> None:
        """Call `on_epoch_end` of each.

        Raises:
            UserError: naming the callback that failed.
        """
        self._call("on_epoch_end", state)

    def on_evaluate(self, state: RunState) -> None:
        """Call `on_evaluate` of each.

        Raises:
            UserError: naming the callback that failed.
        """
        self._call("on_evaluate", state)

    def on_end(self, state: RunState) -> None:
        """Call `on_end` of each.

        Raises:
            UserError: naming the callback that failed.
        """
        self._call("on_end", state)

    def _call(self, method: str, state: RunState) -> None:
        for callback in self._callbacks:
            try:
                getattr(callback, method)(state)
            except Exception as error:  # the user's own code can raise anything
                name = f"{type(callback).__module__}:{type(callback).__qualname__}"
                raise UserError(
                    f"callback {name}, {method}: {type(error).__name__}: {cause(error)}. Epoch {state.epoch} is saved: "
                    "correct the callback and rerun the command to resume."
                ) from error
