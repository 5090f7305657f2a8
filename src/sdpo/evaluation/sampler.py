"""The samplers of an evaluation: the model's own, which its users run, and the one that training samples with."""

from __future__ import annotations

from dataclasses import dataclass

from sdpo.backbones import Backbone
from sdpo.method.denoisers import Denoiser


@dataclass(frozen=True)
class Sampler:
    """A way to draw images.

    Attributes:
        eta: η, the noise level of the training sampler's steps; None is the model's own sampler, which is that of the
            pipeline's own call.
    """

    eta: float | None = None

    def denoiser(self, backbone: Backbone, num_steps: int) -> Denoiser:
        """Build the transitions of `num_steps` steps.

        Raises:
            UserError: if the model has no such number of steps, or no such sampler.
        """
        return backbone.own_sampler(num_steps) if self.eta is None else backbone.denoiser(num_steps, self.eta)

    def level(self, backbone: Backbone) -> float:
        """η of the steps, whichever sampler they belong to."""
        return backbone.own_eta if self.eta is None else self.eta
