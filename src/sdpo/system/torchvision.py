"""A check of the installed torchvision, which can break other libraries."""

from __future__ import annotations

import importlib
import importlib.util

from sdpo.errors import UserError


def check_torchvision() -> None:
    """Reject a torchvision that does not fit the installed torch: importing transformers or diffusers would fail.

    sdpo does not need torchvision, but both libraries import torchvision where it is installed.

    Raises:
        UserError: if torchvision is installed and cannot be imported.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a missing symbol, operator or library: RuntimeError, OSError, ImportError, ...
        raise UserError(
            f"the installed torchvision cannot be imported beside this torch ({type(error).__name__}: {error}), and "
            "diffusers and transformers fail with it. sdpo does not need torchvision. Uninstall it "
            "(pip uninstall torchvision), or install the build that belongs to this torch."
        ) from error
