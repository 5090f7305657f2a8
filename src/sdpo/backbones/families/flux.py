"""FluxPipeline: FLUX.1-schnell, and FLUX.1-dev and its derivatives, which embed their guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sdpo.backbones.base import Conditioning, Guidance
from sdpo.backbones.families.flow_match import JOINT_ATTENTION, FlowMatch


class Flux(FlowMatch):
    """A transformer over packed latents and text tokens, with a CLIP and a T5 text encoder.

    The loop holds latents [N, C, H, W]; the network sees tokens of 2 × 2 latents, with 4 C channels.
    """

    lora_targets = JOINT_ATTENTION
    text_encoders = ("text_encoder", "text_encoder_2")

    def network_guidance(self) -> Guidance:
        """Embedded guidance where the transformer has an embedding for the guidance scale."""
        return "embedded" if self.network_config.guidance_embeds else "classifier-free"

    @property
    def prompt_tokens(self) -> int:
        """Number of T5 tokens of a prompt: models without embedded guidance were trained on 256, the others on 512."""
        return 512 if self.guidance == "embedded" else 256

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode N prompts: `encoder_hidden_states` [N, L, D] of T5 and `pooled_projections` [N, P] of CLIP."""
        with torch.no_grad():
            embeddings, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), device=self.text_device, max_sequence_length=self.prompt_tokens
            )
        return {
            "encoder_hidden_states": embeddings.to(self.device),
            "pooled_projections": pooled.to(self.device),
        }

    def token_limits(self) -> dict[str, int]:
        """The number of tokens that the CLIP tokenizer and T5's keep."""
        return {"tokenizer": int(self.pipeline.tokenizer_max_length), "tokenizer_2": self.prompt_tokens}

    def network(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """Evaluate the transformer on packed latents."""
        embeddings = conditioning["encoder_hidden_states"]
        embedded = self.guidance == "embedded"
        rows, columns = (torch.arange(size // 2, device=latents.device) for size in latents.shape[2:])
        output = self.network_module(
            functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2).to(embeddings.dtype),
            timestep=timesteps.to(embeddings.dtype) / 1000,
            guidance=torch.full_like(timesteps, guidance_scale) if embedded else None,
            txt_ids=embeddings.new_zeros(embeddings.shape[1], 3),
            img_ids=torch.cartesian_prod(rows.new_zeros(1), rows, columns).to(embeddings.dtype),
            return_dict=False,
            **conditioning,
        )[0]
        return functional.pixel_shuffle(output.transpose(1, 2).unflatten(2, (len(rows), len(columns))), 2)

    def schedule(self, num_steps: int) -> dict[str, Any]:
        """Evenly spaced σ, shifted by the size of the image."""
        return {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps), "mu": self.shift_by_size()}

    def call_arguments(self, num_steps: int, guidance_scale: float) -> dict[str, Any]:
        """Arguments for embedded guidance, or for classifier-free guidance against the empty prompt."""
        tokens = {"max_sequence_length": self.prompt_tokens}
        if self.guidance == "embedded":
            return tokens | {"guidance_scale": guidance_scale}
        return tokens | ({"true_cfg_scale": guidance_scale, "negative_prompt": ""} if guidance_scale != 1 else {})

    @property
    def latent_channels(self) -> int:
        """Number of channels of the latents; the network's tokens have four times as many."""
        return int(self.network_config.in_channels) // 4

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained for."""
        side = self.pipeline.default_sample_size * self.latent_scale
        return side, side
