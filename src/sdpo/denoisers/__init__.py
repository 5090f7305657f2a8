"""Families of denoising transitions: from a network output to a Gaussian over the next latent."""

from sdpo.denoisers.base import Denoiser, Transition
from sdpo.denoisers.ddim import DDIM

__all__ = ["DDIM", "Denoiser", "Transition"]
