"""Callbacks: the user's own code, called after each epoch, after each evaluation, and after the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.assembly.model_parts import ModelParts
from sdpo.errors import UserError, cause
from sdpo.evaluation.record import Evaluation


@dataclass(frozen=True)
class RunState:
    """The state of a run that a callback sees.

    Attributes:
        epoch: the epoch that has ended, or from which the result is; 0 is the base model.
        epochs: the number of epochs in the configuration.
        run_dir: the run's directory.
        metrics: the epoch's row of `metrics.jsonl` at the end of an epoch; the means of the latest evaluation for the
            base model, for the result of a run that a stopping rule ended, and at the end of the run.
        evaluation: the latest evaluation; None where there has been none.
        parts: the parts of the run, a `Parts`; a callback must not change them.
    """

    epoch: int
    epochs: int
    run_dir: Path
    metrics: Mapping[str, Any]
    evaluation: Evaluation | None
    parts: ModelParts


class Callback:
    """The base class of callbacks; a subclass overrides the methods that it needs.

    Callbacks are called on the main process only. A callback that raises ends the run with a message that names the
    callback; the last epoch is saved.
    """

    def on_epoch_end(self, state: RunState) -> None:
        """Called after each epoch, when it has been saved."""

    def on_evaluate(self, state: RunState) -> None:
        """Called after each evaluation, when its files have been written."""

    def on_end(self, state: RunState) -> None:
        """Called at the end of the run, when the result and the report have been written."""


class Callbacks(Callback):
    """Calls several callbacks in order.

    Args:
        callbacks: the user's callbacks.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    def on_epoch_end(self, state: RunState) -> None:
        """Call `on_epoch_end` of every callback.

        Raises:
            UserError: naming the callback that failed.
        """
        self._call("on_epoch_end", state)

    def on_evaluate(self, state: RunState) -> None:
        """Call `on_evaluate` of every callback.

        Raises:
            UserError: naming the callback that failed.
        """
        self._call("on_evaluate", state)

    def on_end(self, state: RunState) -> None:
        """Call `on_end` of every callback.

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
                advice = (
                    f"Epoch {state.epoch} is saved: correct the callback and rerun the command to resume."
                    if state.epoch > 0
                    else "Correct the callback and rerun the command."
                )
                raise UserError(
                    f"callback {name}, {method}: {type(error).__name__}: {cause(error)}. {advice}"
                ) from error
