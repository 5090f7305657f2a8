"""The entry point: parses the arguments, runs a command, and turns errors into messages and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sdpo.cli.parser import parse
from sdpo.errors import UserError
from sdpo.system.interrupt import Terminated
from sdpo.system.log import configure, is_main_process, logger


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None uses those of the process.

    Returns:
        The exit code: 0; 1 if the doctor found a fault; 2 for an error that the user can fix; 130 or 143 if SIGINT or
        SIGTERM ended the command.
    """
    configure()
    arguments = parse(argv)
    try:
        return arguments.run(arguments) or 0
    except UserError as error:
        _report(error)
        return 2
    except (KeyboardInterrupt, Terminated) as stop:
        if is_main_process() and _is_first_to_fail():  # all processes are interrupted together
            advice = stop.args[0] if stop.args and isinstance(stop.args[0], str) else "rerun the command"
            logger.info("interrupted: %s", advice)
        return 143 if isinstance(stop, Terminated) else 130


def _report(error: UserError) -> None:
    """Log an error, without secrets, and with the process that failed if there are several."""
    if not _is_first_to_fail():
        return
    from sdpo.config.secrets import redact

    count = os.environ.get("WORLD_SIZE", "1")
    process = "" if count == "1" else f" [process {os.environ.get('RANK')} of {count}]"
    logger.error("%s%s", redact(str(error)), process)


def _is_first_to_fail() -> bool:
    """Whether this process is the first of a run to fail; the others then fail because of it, and stay silent."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from sdpo.distributed.processes import first_to_fail

    return first_to_fail()


if __name__ == "__main__":
    sys.exit(main())
