"""`environment.json`: the versions and the device of a run, and the format of its directory."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from sdpo.errors import UserError
from sdpo.run.directory import RunDirectory
from sdpo.system.durable import write_whole

FORMAT = 1
"""The format of a run's directory; a new number means that older versions cannot resume the run."""

_PACKAGES = ("sdpo", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pydantic")


def check_format(run: RunDirectory) -> None:
    """Refuse a run's directory of a format that a newer version wrote.

    Raises:
        UserError: naming both formats.
    """
    try:
        record = json.loads(run.environment.read_text(encoding="utf-8"))
        found = record["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # a new run, or one whose environment is lost: its configuration and checksums decide
    if isinstance(found, int) and found > FORMAT:
        raise UserError(
            f"{run.path} was made by sdpo {record.get('sdpo')}, whose runs have format {found}; this is sdpo "
            f"{version('sdpo')}, which reads formats up to {FORMAT}. Upgrade sdpo, or name another directory."
        )


def write_environment(run: RunDirectory, device: torch.device, processes: int) -> None:
    """Write the versions, the device and the number of processes of a run."""
    record: dict[str, Any] = {
        "format": FORMAT,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
    }
    for name in _PACKAGES:
        try:
            record[name] = version(name)
        except PackageNotFoundError:
            record[name] = "not installed"
    write_whole(run.environment, json.dumps(record, indent=2) + "\n")
