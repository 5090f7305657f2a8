"""Flux2KleinPipeline: FLUX.2-klein, step-distilled or base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor
from torch.nn import functional

from sdpo.backbones.base import Conditioning, Guidance
from sdpo.backbones.families.flow_match import JOINT_ATTENTION, FlowMatch

TOKENS = 512
"""Number of tokens at which the pipeline's own call truncates a prompt."""


class Flux2Klein(FlowMatch):
    """A transformer over image and text tokens; a language model encodes prompts.

    The loop holds the network's latents: 2 × 2 of the decoder's latents stacked in the channels of one, normalised by
    the decoder's batch-norm statistics.
    """

    # The blocks after the joint ones compute queries, keys and values in one product with their feed-forward part.
    lora_targets = (*JOINT_ATTENTION, "to_qkv_mlp_proj")

    def network_guidance(self) -> Guidance:
        """No guidance where the model was distilled to sample without it."""
        return "none" if self.pipeline.config.is_distilled else "classifier-free"

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode N prompts with the language model: `encoder_hidden_states` [N, L, D]."""
        with torch.no_grad():
            embeddings, _ = self.pipeline.encode_prompt(list(prompts), self.text_device)
        return {"encoder_hidden_states": embeddings.to(self.device)}

    def token_limits(self) -> dict[str, int]:
        """The number of tokens that the pipeline's own call keeps, the turns of the conversation included."""
        return {"tokenizer": TOKENS}

    def tokenized_text(self, prompt: str) -> str:
        """The prompt as the user's turn of a conversation."""
        turn = [{"role": "user", "content": prompt}]
        template = self.pipeline.tokenizer.apply_chat_template
        return str(template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False))

    def network(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """Evaluate the transformer, one token a latent."""
        embeddings = conditioning["encoder_hidden_states"]
        one = torch.zeros(1, dtype=torch.long, device=latents.device)
        rows, columns, words = (
            torch.arange(size, device=latents.device) for size in (*latents.shape[2:], embeddings.shape[1])
        )
        output = self.network_module(
            latents.flatten(2).transpose(1, 2).to(embeddings.dtype),
            encoder_hidden_states=embeddings,
            timestep=timesteps.to(embeddings.dtype) / 1000,
            img_ids=torch.cartesian_prod(one, rows, columns, one),
            txt_ids=torch.cartesian_prod(one, one, one, words),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).unflatten(2, latents.shape[2:])

    def decode(self, latents: Tensor, gradient: bool = False) -> Tensor:
        """Decode latents with the VAE: undo the normalisation and unstack 2 × 2 latents from the channels."""
        statistics, epsilon = self.pipeline.vae.bn, self.pipeline.vae.config.batch_norm_eps
        mean, std = statistics.running_mean, (statistics.running_var + epsilon).sqrt()
        column = (1, -1, 1, 1)
        scaled = latents * std.view(column) + mean.view(column)
        return self.decode_with_vae(functional.pixel_shuffle(scaled, 2), gradient)

    def schedule(self, num_steps: int) -> dict[str, Any]:
        """Evenly spaced σ, shifted by the size of the image and the number of steps."""
        _, height, width = self.latent_shape
        mu = compute_empirical_mu(height * width, num_steps)
        return {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps), "mu": mu}

    @property
    def latent_scale(self) -> int:
        """Side of the square of pixels that becomes one latent of the network."""
        return 2 * int(self.pipeline.vae_scale_factor)

    @property
    def patch(self) -> int:
        """Side of the square of latents that becomes one token."""
        return 1

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained for."""
        side = self.pipeline.default_sample_size * int(self.pipeline.vae_scale_factor)
        return side, side
