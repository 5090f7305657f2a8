"""Families of denoising transitions: from a network output to a Gaussian over the next latent."""

from sdpo.denoisers.base import Denoiser, Prediction, Transition
from sdpo.denoisers.consistency import Consistency
from sdpo.denoisers.ddim import DDIM, Schedule, ScheduledDDIM
from sdpo.denoisers.flow import RectifiedFlow, TrigFlow

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
