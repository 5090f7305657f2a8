"""The common base of the pipelines around a UNet2DConditionModel."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from sdpo.backbones.base import Conditioning, Guidance
from sdpo.backbones.pipeline import PipelineBackbone
from sdpo.backbones.schedules import check_start, own_eta, unet_denoiser
from sdpo.method.denoisers import Denoiser


class UNetBackbone(PipelineBackbone):
    """A UNet whose `encode` returns `encoder_hidden_states` [N, L, D] and the UNet's further inputs by name.

    Transitions are stochastic DDIM, or consistency sampling under an LCMScheduler. A UNet that was distilled with
    guidance takes the guidance scale as an embedding, and needs one evaluation a step.
    """

    component = "unet"
    repeated_blocks = ("BasicTransformerBlock", "ResnetBlock2D")
    channels_last = True

    def network_guidance(self) -> Guidance:
        """Embedded guidance where the UNet has a projection for the guidance scale."""
        return "classifier-free" if self.network_config.time_cond_proj_dim is None else "embedded"

    def network(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """Evaluate the UNet."""
        hidden = conditioning["encoder_hidden_states"]
        added = {name: rows for name, rows in conditioning.items() if name != "encoder_hidden_states"}
        return self.network_module(
            latents.to(hidden.dtype, memory_format=torch.channels_last),
            timesteps,
            encoder_hidden_states=hidden,
            timestep_cond=self._guidance_embedding(guidance_scale, hidden) if self.guidance == "embedded" else None,
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]

    def decode(self, latents: Tensor, gradient: bool = False) -> Tensor:
        """Decode latents with the VAE, undoing its scale and, where its config has them, the latents' mean and std."""
        config = self.pipeline.vae.config
        scaled = latents / config.scaling_factor
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            column = (1, -1, 1, 1)
            scaled = scaled * scaled.new_tensor(std).reshape(column) + scaled.new_tensor(mean).reshape(column)
        return self.decode_with_vae(scaled, gradient)

    def denoiser(self, num_steps: int, eta: float) -> Denoiser:
        """Build the transitions on the pipeline's own scheduler."""
        return self._denoiser(num_steps, eta, published=True)

    @property
    def own_eta(self) -> float:
        """η of the steps of the pipeline's own call."""
        return own_eta(self.pipeline.scheduler)

    def own_sampler(self, num_steps: int) -> Denoiser:
        """Build the transitions of the pipeline's own call, down to the scheduler's last noise level."""
        return self._denoiser(num_steps, self.own_eta, published=False)

    def _denoiser(self, num_steps: int, eta: float, published: bool) -> Denoiser:
        scheduler = self.pipeline.scheduler
        denoiser = unet_denoiser(scheduler, num_steps, eta, self.device, published)
        check_start(scheduler, denoiser.timesteps, self.has_fused_lora)
        return denoiser

    @functools.cached_property
    def _guidance_embeddings(self) -> dict[float, Tensor]:
        """Embeddings of guidance scales, [1, D], by scale."""
        return {}

    def _guidance_embedding(self, guidance_scale: float, like: Tensor) -> Tensor:
        """The pipeline's own embedding of guidance_scale − 1, computed once for each scale, [len(like), D]."""
        if guidance_scale not in self._guidance_embeddings:
            with torch.inference_mode(False):  # the update's autograd graph keeps the embedding
                excess = torch.tensor([guidance_scale - 1])
                width = self.network_config.time_cond_proj_dim
                embedding = self.pipeline.get_guidance_scale_embedding(excess, embedding_dim=width)
                self._guidance_embeddings[guidance_scale] = embedding.to(like.device, like.dtype)
        return self._guidance_embeddings[guidance_scale].expand(len(like), -1)
