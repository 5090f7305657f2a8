"""Notes and bars of the libraries, kept away from ours."""

from __future__ import annotations

import logging

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Let diffusers and transformers log nothing; what they cannot do they raise besides logging it."""
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
