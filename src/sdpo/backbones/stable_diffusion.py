"""StableDiffusionPipeline: SD-Turbo, SD 1.5 / 2.1 and the embedded model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdpo.backbones.base import Conditioning
from sdpo.backbones.pipeline import PipelineBackbone
from sdpo.denoisers import DDIM
from sdpo.errors import UserError


class StableDiffusion(PipelineBackbone):
    """A UNet with one CLIP text encoder, stochastic DDIM on the pipeline's own betas."""

    component = "unet"
    repeated_blocks = ("BasicTransformerBlock", "ResnetBlock2D")
    channels_last = True

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """See `Backbone.encode`; returns `encoder_hidden_states` [N, L, D]."""
        with torch.no_grad():
            embeddings, _ = self.pipeline.encode_prompt(list(prompts), self.text_device, 1, False)
        return {"encoder_hidden_states": embeddings.to(self.device)}

    def network(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """See `Backbone.network`."""
        dtype = conditioning["encoder_hidden_states"].dtype
        return self.network_module(
            latents.to(dtype, memory_format=torch.channels_last), timesteps, return_dict=False, **conditioning
        )[0]

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`."""
        return self.decode_with_vae(latents / self.pipeline.vae.config.scaling_factor)

    def denoiser(self, num_steps: int, eta: float) -> DDIM:
        """See `Backbone.denoiser`."""
        scheduler = self.pipeline.scheduler
        try:
            return DDIM(scheduler.alphas_cumprod, num_steps, scheduler.config.prediction_type, eta, self.device)
        except ValueError as error:
            raise UserError(str(error)) from error
