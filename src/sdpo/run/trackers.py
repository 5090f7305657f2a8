"""The user's experiment trackers, through accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdpo.errors import UserError, cause


class Trackers:
    """The user's experiment trackers; a context that finishes them.

    Args:
        names: the trackers, by accelerate's names; may be empty.
        run_dir: the run's directory, to which file-based trackers write.
        config: the configuration, which the trackers record.
    """

    def __init__(self, names: list[str], run_dir: Path, config: dict[str, Any]) -> None:
        self._names = names
        self._run_dir = run_dir
        self._config = config
        self._accelerator: Any = None

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *error: object) -> None:
        # The processes' group stays, which `Accelerator.end_training` would end.
        for tracker in self._accelerator.trackers if self._accelerator is not None else []:
            tracker.finish()

    def start(self) -> None:
        """Start the trackers.

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
            accelerator = Accelerator(log_with=self._names, project_dir=str(self._run_dir), cpu=True)
            accelerator.init_trackers("sdpo", config=_flat(self._config))
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


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to `section.key` names; values that trackers cannot hold become strings."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
