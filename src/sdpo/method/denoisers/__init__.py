"""Families of denoising transitions: from a network output to a Gaussian over the next latent."""

from sdpo.method.denoisers.base import Denoiser, Prediction, Transition
from sdpo.method.denoisers.consistency import Consistency
from sdpo.method.denoisers.ddim import DDIM, Schedule, ScheduledDDIM
from sdpo.method.denoisers.flow import RectifiedFlow, TrigFlow

__all__ = [
    "DDIM",
    "Consistency",
    "Denoiser",
    "Prediction",
    "RectifiedFlow",
    "Schedule",
    "ScheduledDDIM",
    "Transition",
    "TrigFlow",
]
