"""Joins the processes of a training run, and checks the launch against the configuration."""

from __future__ import annotations

from sdpo.assembly.checks import check_processes
from sdpo.config import Config
from sdpo.distributed import launch
from sdpo.distributed.processes import Processes


def join_processes(config: Config) -> tuple[Processes, launch.Sharding | None]:
    """Join the processes of the launch.

    Args:
        config: the configuration of a run.

    Returns:
        The processes, and the sharding that the launch asks for; None where it asks for none, or has one process, which
        holds everything.

    Raises:
        UserError: if the launch asks for something that sdpo does not support, the device does not exist, the batches
            do not divide over the processes, or a setting cannot be combined with the sharding.
    """
    # First: accelerate joins the processes with the launch's own libraries, and fails without a message of ours.
    sharding = launch.requested(config.device)
    processes = Processes(config.device, sharded=True)
    check_processes(config, processes.count)
    if sharding is None or processes.count == 1:
        return processes, None
    launch.check(sharding, config, processes.device)
    return processes, sharding
