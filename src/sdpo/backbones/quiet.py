"""Silence for the log messages and progress bars of diffusers and transformers."""

from __future__ import annotations

import logging

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Switch off the log messages and progress bars of diffusers and transformers, which raise their errors as well."""
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
