"""What the pipelines around a UNet2DConditionModel have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdpo.backbones.base import Conditioning
from sdpo.backbones.pipeline import PipelineBackbone
from sdpo.backbones.schedules import unet_denoiser
from sdpo.method.denoisers import Denoiser


class UNetBackbone(PipelineBackbone):
    """A UNet; `encode` gives `encoder_hidden_states` [N, L, D] and what else the UNet wants by name.

    Transitions are stochastic DDIM, or those of consistency models under an LCMScheduler. A UNet that was distilled
    with guidance takes its scale as an embedding, and needs no second call.
    """

    component = "unet"
    repeated_blocks = ("BasicTransformerBlock", "ResnetBlock2D")
    channels_last = True

    def __init__(self, pipeline: Any, device: torch.device, size: tuple[int | None, int | None] = (None, None)) -> None:
        super().__init__(pipeline, device, size)
        self._guidance: dict[float, Tensor] = {}
        if self.network_config.time_cond_proj_dim is not None:
            self.guidance = "embedded"

    def network(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """See `Backbone.network`."""
        hidden = conditioning["encoder_hidden_states"]
        added = {name: rows for name, rows in conditioning.items() if name != "encoder_hidden_states"}
        return self.network_module(
            latents.to(hidden.dtype, memory_format=torch.channels_last),
            timesteps,
            encoder_hidden_states=hidden,
            timestep_cond=self._embedded(guidance_scale, hidden) if self.guidance == "embedded" else None,
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`."""
        config = self.pipeline.vae.config
        scaled = latents / config.scaling_factor
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            column = (1, -1, 1, 1)
            scaled = scaled * scaled.new_tensor(std).reshape(column) + scaled.new_tensor(mean).reshape(column)
        return self.decode_with_vae(scaled)

    def denoiser(self, num_steps: int, eta: float) -> Denoiser:
        """See `Backbone.denoiser`."""
        return unet_denoiser(self.pipeline.scheduler, num_steps, eta, self.device)

    def _embedded(self, guidance_scale: float, like: Tensor) -> Tensor:
        """The pipeline's own embedding of guidance_scale − 1, made once, [len(like), D]."""
        if guidance_scale not in self._guidance:
            with torch.inference_mode(False):  # the update's graph keeps it
                excess = torch.tensor([guidance_scale - 1])
                width = self.network_config.time_cond_proj_dim
                embedding = self.pipeline.get_guidance_scale_embedding(excess, embedding_dim=width)
                self._guidance[guidance_scale] = embedding.to(like.device, like.dtype)
        return self._guidance[guidance_scale].expand(len(like), -1)
