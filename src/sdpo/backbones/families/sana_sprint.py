"""SanaSprintPipeline: SANA-Sprint 0.6B and 1.6B."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SanaSprintPipeline, SCMScheduler
from torch import Tensor

from sdpo.backbones.base import Conditioning
from sdpo.backbones.pipeline import PipelineBackbone
from sdpo.errors import UserError
from sdpo.method.denoisers import TrigFlow

INSTRUCTION = inspect.signature(SanaSprintPipeline.__call__).parameters["complex_human_instruction"].default
"""The instruction that the pipeline's own call puts before each prompt."""

PROMPT_TOKENS: int = inspect.signature(SanaSprintPipeline.__call__).parameters["max_sequence_length"].default
"""Number of tokens after the instruction at which the pipeline's own call truncates a prompt, plus two."""


class SanaSprint(PipelineBackbone):
    """A trigflow transformer with linear attention that embeds its guidance; Gemma encodes prompts.

    The loop's latents are divided by the scheduler's `sigma_data`, so that their noise has variance 1.
    """

    guidance = "embedded"
    repeated_blocks = ("SanaTransformerBlock",)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode N prompts: `encoder_hidden_states` [N, L, D] and `encoder_attention_mask` [N, L]."""
        with torch.no_grad():
            embeddings, mask = self.pipeline.encode_prompt(
                list(prompts), device=self.text_device, complex_human_instruction=INSTRUCTION
            )
        return {"encoder_hidden_states": embeddings.to(self.device), "encoder_attention_mask": mask.to(self.device)}

    def token_limits(self) -> dict[str, int]:
        """The number of tokens that the pipeline's own call keeps, the instruction included."""
        instruction = self.pipeline.tokenizer.encode("\n".join(INSTRUCTION))
        return {"tokenizer": len(instruction) + PROMPT_TOKENS - 2}

    def tokenized_text(self, prompt: str) -> str:
        """The instruction and the prompt, which the pipeline writes in lower case."""
        return "\n".join(INSTRUCTION) + prompt.lower().strip()

    def network(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """Evaluate the rectified-flow transformer at σ = sin t / (sin t + cos t), and return trigflow's output."""
        dtype = conditioning["encoder_hidden_states"].dtype
        sigma = timesteps.sin() / (timesteps.cos() + timesteps.sin())
        s = sigma.reshape(-1, 1, 1, 1)
        norm = (s**2 + (1 - s) ** 2).sqrt()
        x = latents * norm
        output = self.network_module(
            x.to(dtype),
            timestep=sigma,
            guidance=torch.full_like(sigma, guidance_scale).to(dtype) * self.network_config.guidance_embeds_scale,
            return_dict=False,
            **conditioning,
        )[0]
        return ((1 - 2 * s) * x + (1 - 2 * s + 2 * s**2) * output) / norm

    def decode(self, latents: Tensor, gradient: bool = False) -> Tensor:
        """Decode latents with the VAE, undoing its scale."""
        return self.decode_with_vae(latents / self.pipeline.vae.config.scaling_factor, gradient)

    def denoiser(self, num_steps: int, eta: float) -> TrigFlow:
        """Build the trigflow transitions on the pipeline's own schedule."""
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        if not isinstance(scheduler, SCMScheduler):
            raise UserError(
                f"a SanaSprintPipeline is sampled on an SCMScheduler, but this one has a {type(scheduler).__name__}: "
                "use the scheduler that the model was released with"
            )
        try:
            scheduler.set_timesteps(num_steps, **_angles(num_steps))
            return TrigFlow(scheduler.timesteps, eta, self.device)
        except ValueError as error:
            raise UserError(str(error)) from error

    @property
    def own_eta(self) -> float:
        """1: each step of the pipeline's own call draws fresh noise."""
        return 1.0

    @property
    def noise_dtype(self) -> torch.dtype:
        """The pipeline's own call draws its noise in float32, whatever the weights' type."""
        return torch.float32

    def call_arguments(self, num_steps: int, guidance_scale: float) -> dict[str, Any]:
        """Arguments for embedded guidance and the default schedule, at exactly the given size."""
        return {"guidance_scale": guidance_scale, "use_resolution_binning": False, **_angles(num_steps)}

    @property
    def size_multiple(self) -> int:
        """Height and width in pixels must be multiples of 32, which the pipeline's own call demands."""
        return 32


def _angles(num_steps: int) -> dict[str, float | None]:
    """The pipeline's default angles; with two steps it has a special angle between them."""
    return {"max_timesteps": 1.57080, "intermediate_timesteps": 1.3 if num_steps == 2 else None}
