"""A callback outside the package; docs/extend.md explains it.

From this folder:

    sdpo train emoji 'callbacks=[{name: own_callback:Notes, file: notes.txt}]' --output-dir runs/own
"""

from __future__ import annotations

from dataclasses import dataclass

from sdpo import Callback, RunState


@dataclass(frozen=True)
class Notes(Callback):
    """Writes a line to a file of the run's directory after each epoch, each evaluation, and the run."""

    file: str = "notes.txt"

    def on_epoch_end(self, state: RunState) -> None:
        """Called after each epoch, when it has been saved."""
        reward = state.metrics["reward/last_step"]  # null where an algorithm rewarded no last step's image
        shown = "none" if reward is None else f"{reward:.4f}"
        self._write(state, f"epoch {state.epoch} of {state.epochs}: reward {shown}")

    def on_evaluate(self, state: RunState) -> None:
        """Called after each evaluation; epoch 0 is the base model's."""
        means = {name: value for name, value in state.metrics.items() if name.startswith("eval/")}
        self._write(state, f"evaluation of epoch {state.epoch}: {means}")

    def on_end(self, state: RunState) -> None:
        """Called once, when the result is written."""
        self._write(state, f"finished; the report is in {state.run_dir}")

    def _write(self, state: RunState, line: str) -> None:
        with (state.run_dir / self.file).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
