"""sdpo: Stepwise Diffusion Policy Optimization for few-step text-to-image diffusion models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Algorithm",
    "Augment",
    "Callback",
    "Config",
    "Credit",
    "Hybrid",
    "LossOutput",
    "Normalizer",
    "RewardGradient",
    "RewardPlan",
    "RunState",
    "StepBatch",
    "Term",
    "Trainer",
    "TrajectoryBatch",
    "UserError",
    "__version__",
    "embedded",
]

if TYPE_CHECKING:
    from sdpo.assembly.callbacks import Callback, RunState
    from sdpo.backbones import embedded
    from sdpo.config import Config
    from sdpo.errors import UserError
    from sdpo.method.advantages import Normalizer
    from sdpo.method.algorithms import Algorithm, Hybrid, RewardGradient
    from sdpo.method.algorithms.reward_gradient import Term
    from sdpo.method.augment import Augment
    from sdpo.method.credit import Credit
    from sdpo.method.reward_plans import RewardPlan
    from sdpo.method.types import LossOutput, StepBatch, TrajectoryBatch
    from sdpo.trainer import Trainer

_MODULES = {
    "Algorithm": "sdpo.method.algorithms",
    "Augment": "sdpo.method.augment",
    "Callback": "sdpo.assembly.callbacks",
    "Config": "sdpo.config",
    "Credit": "sdpo.method.credit",
    "Hybrid": "sdpo.method.algorithms",
    "LossOutput": "sdpo.method.types",
    "Normalizer": "sdpo.method.advantages",
    "RewardGradient": "sdpo.method.algorithms",
    "RewardPlan": "sdpo.method.reward_plans",
    "RunState": "sdpo.assembly.callbacks",
    "StepBatch": "sdpo.method.types",
    "Term": "sdpo.method.algorithms.reward_gradient",
    "Trainer": "sdpo.trainer",
    "TrajectoryBatch": "sdpo.method.types",
    "UserError": "sdpo.errors",
    "embedded": "sdpo.backbones",
}


def __getattr__(name: str) -> Any:
    """Import a name's module when the name is first used: `import sdpo` takes no time, diffusers takes seconds."""
    import importlib

    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'sdpo' has no attribute {name!r}")
