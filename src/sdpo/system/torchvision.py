"""What the surroundings can break."""

from __future__ import annotations

import importlib
import importlib.util

from sdpo.errors import UserError


def check_torchvision() -> None:
    """Refuse a torchvision that does not fit the installed torch: importing transformers or diffusers would fail.

    Nothing here needs torchvision, but both libraries import it where they find it.

    Raises:
        UserError: naming the fix.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a missing symbol, operator or library: RuntimeError, OSError, ImportError, ...
        raise UserError(
            f"the installed torchvision cannot be imported beside this torch ({type(error).__name__}: {error}), and "
            "diffusers and transformers break with it. sdpo does not need torchvision: pip uninstall torchvision; or "
            "install the build that belongs to this torch."
        ) from error
