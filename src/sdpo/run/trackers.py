"""The user's experiment trackers, through accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdpo.errors import UserError


class Trackers:
    """The user's trackers, through accelerate."""

    def __init__(self, names: list[str], run_dir: Path, config: dict[str, Any]) -> None:
        self._accelerator = None
        if not names:
            return
        from accelerate import Accelerator
        from accelerate.tracking import get_available_trackers
        from accelerate.utils import LoggerType

        known = [str(member.value) for member in LoggerType if member.value != "all"]
        for name in names:
            if name not in known:
                raise UserError(f"trackers: there is no tracker {name!r}; accelerate knows {', '.join(known)}")
            if name not in map(str, get_available_trackers()):
                raise UserError(f"trackers: {name!r} is not installed: pip install {name}")
        try:
            self._accelerator = Accelerator(log_with=names, project_dir=str(run_dir), cpu=True)
            self._accelerator.init_trackers("sdpo", config=_flat(config))
        except Exception as error:  # a tracker's own failure (no login, no network): the run has not begun
            raise UserError(f"trackers: {', '.join(names)} cannot be started: {error}") from error

    def log(self, row: dict[str, Any]) -> None:
        """Log an epoch."""
        if self._accelerator is not None:
            known = {name: value for name, value in row.items() if value is not None}
            self._accelerator.log(known, step=row["epoch"])

    def close(self) -> None:
        """Finish; the processes' group stays, which `Accelerator.end_training` would end."""
        for tracker in self._accelerator.trackers if self._accelerator is not None else []:
            tracker.finish()


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
