"""The user's experiment trackers, through accelerate."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdpo.errors import UserError, cause
from sdpo.run.directory import RunDirectory
from sdpo.system.durable import write_whole


class Trackers:
    """The user's experiment trackers; a context that finishes them.

    Args:
        names: the trackers, by accelerate's names; may be empty.
        run_dir: the run's directory, in which the trackers write that can be told where to.
        config: the configuration, which the trackers record.
    """

    def __init__(self, names: list[str], run_dir: Path, config: dict[str, Any]) -> None:
        self._names = names
        self._run = RunDirectory(run_dir)
        self._config = config
        self._accelerator: Any = None

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *error: object) -> None:
        # The processes' group stays, which `Accelerator.end_training` would end.
        for tracker in self._accelerator.trackers if self._accelerator is not None else []:
            tracker.finish()

    def start(self) -> None:
        """Start the trackers; in a resumed run they continue where they ended.

        Raises:
            UserError: if a tracker is unknown, not installed, or fails to start.
        """
        if not self._names:
            return
        from accelerate import Accelerator
        from accelerate.tracking import get_available_trackers
        from accelerate.utils import LoggerType

        known = [str(member.value) for member in LoggerType if member.value != "all"]
        for name in self._names:
            if name not in known:
                raise UserError(f"trackers: there is no tracker {name!r}; use {', '.join(known)}")
            if name not in map(str, get_available_trackers()):
                raise UserError(f"trackers: {name!r} is not installed: pip install {name}")
        try:
            accelerator = Accelerator(log_with=self._names, project_dir=str(self._run.path), cpu=True)
            accelerator.init_trackers("sdpo", config=_flat(self._config), init_kwargs=self._places())
        except Exception as error:  # a tracker's own failure (no login, no network): the run has not begun
            raise UserError(
                f"trackers: {', '.join(self._names)} cannot be started: {cause(error)}. Fix the problem, or set "
                "trackers=[]."
            ) from error
        self._accelerator = accelerator

    def log(self, row: dict[str, Any]) -> None:
        """Log an epoch's row of metrics, without metrics that are None."""
        if self._accelerator is not None:
            known = {name: value for name, value in row.items() if value is not None}
            self._accelerator.log(known, step=row["epoch"])

    def _places(self) -> dict[str, dict[str, Any]]:
        """Where trackers write, and under which name the run continues there, as arguments of their own `init`."""
        folder = self._run.path
        places: dict[str, Callable[[str], dict[str, Any]]] = {
            "wandb": lambda name: {"dir": str(folder), "id": name, "resume": "allow"},
            "swanlab": lambda name: {"logdir": str(folder / "swanlog"), "id": name, "resume": "allow"},
            "trackio": lambda name: {"name": name, "resume": "allow"},
        }
        return {tracker: places[tracker](self._name()) for tracker in self._names if tracker in places}

    def _name(self) -> str:
        """The name of this run in trackers: chosen once, and kept in the run's directory."""
        try:
            return str(json.loads(self._run.trackers.read_text(encoding="utf-8"))["name"])
        except (OSError, ValueError, KeyError, TypeError):
            name = uuid.uuid4().hex[:21]  # as many characters as swanlab takes
            write_whole(self._run.trackers, json.dumps({"name": name}) + "\n")
            return name


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to `section.key` names; values that trackers cannot hold become strings."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
