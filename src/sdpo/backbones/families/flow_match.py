"""The common base of the rectified-flow families: the schedule of their pipelines' own calls."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from sdpo.backbones.pipeline import PipelineBackbone
from sdpo.errors import UserError
from sdpo.method.denoisers import RectifiedFlow
from sdpo.method.denoisers.flow import Form

JOINT_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Projections of the attention between image and text tokens, which have separate weights for the two."""


class FlowMatch(PipelineBackbone):
    """A transformer that predicts the velocity on the schedule of a FlowMatchEulerDiscreteScheduler."""

    noise_forms = ("preserving", "flow_grpo", "flow_sde")

    @abstractmethod
    def schedule(self, num_steps: int) -> dict[str, Any]:
        """Arguments that the pipeline's own call passes to the scheduler's `set_timesteps`."""

    def denoiser(self, num_steps: int, eta: float) -> RectifiedFlow:
        """Build the transitions on the pipeline's own schedule, with the backbone's form of noise."""
        return self._denoiser(num_steps, eta, self.noise_form)

    def own_sampler(self, num_steps: int) -> RectifiedFlow:
        """Build the transitions of the pipeline's own call, Euler's steps.

        Raises:
            UserError: if the scheduler draws noise, which the pipeline's own call takes from torch's global generator.
        """
        if self.pipeline.scheduler.config.stochastic_sampling:
            raise UserError(
                f"the scheduler of this {type(self.pipeline).__name__} has stochastic_sampling, which gives another "
                "image at each call: set evaluate.eta, or model.scheduler.stochastic_sampling=false"
            )
        return self._denoiser(num_steps, 0.0, "preserving")

    def _denoiser(self, num_steps: int, eta: float, form: Form) -> RectifiedFlow:
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or scheduler.config.invert_sigmas:
            raise UserError(
                f"a {type(self.pipeline).__name__} is sampled on a FlowMatchEulerDiscreteScheduler (without "
                f"invert_sigmas), but this one has a {type(scheduler).__name__}: use the scheduler that the model was "
                "released with"
            )
        if num_steps == 1 and scheduler.config.shift_terminal:
            raise UserError(
                "a schedule with shift_terminal begins and ends at different noise levels, which a single step cannot "
                "have (diffusers divides 0 by 0): use 2 steps or more, also in evaluate.steps"
            )
        scheduler.set_timesteps(**self.schedule(num_steps))
        try:
            return RectifiedFlow(scheduler.sigmas, scheduler.timesteps, eta, form, self.device)
        except ValueError as error:
            raise UserError(f"the model's schedule of {num_steps} steps: {error}") from error

    def decode(self, latents: Tensor, gradient: bool = False) -> Tensor:
        """Decode latents with the VAE, undoing its scale and shift."""
        config = self.pipeline.vae.config
        return self.decode_with_vae(latents / config.scaling_factor + config.shift_factor, gradient)

    @property
    def patch(self) -> int:
        """Side of the square of latents that becomes one token."""
        return 2

    @property
    def size_multiple(self) -> int:
        """Height and width in pixels must be multiples of the side of one token's square of pixels."""
        return self.latent_scale * self.patch

    def shift_by_size(self) -> float:
        """The μ that shifts the schedule: a linear function of the number of image tokens."""
        config = self.pipeline.scheduler.config
        _, height, width = self.latent_shape
        return float(
            calculate_shift(
                (height // self.patch) * (width // self.patch),
                config.base_image_seq_len,
                config.max_image_seq_len,
                config.base_shift,
                config.max_shift,
            )
        )
