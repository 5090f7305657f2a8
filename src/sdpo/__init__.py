"""sdpo: Stepwise Diffusion Policy Optimization for few-step text-to-image diffusion models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Config", "Trainer", "UserError", "__version__", "embedded"]

if TYPE_CHECKING:
    from sdpo.backbones import embedded
    from sdpo.config import Config
    from sdpo.errors import UserError
    from sdpo.trainer import Trainer

_MODULES = {
    "Config": "sdpo.config",
    "Trainer": "sdpo.trainer",
    "UserError": "sdpo.errors",
    "embedded": "sdpo.backbones",
}


def __getattr__(name: str) -> Any:
    """Import a name's module when the name is first used: `import sdpo` takes no time, diffusers takes seconds."""
    import importlib

    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'sdpo' has no attribute {name!r}")
