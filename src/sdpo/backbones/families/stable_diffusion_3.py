"""StableDiffusion3Pipeline: SD 3.5 large turbo, large and medium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdpo.backbones.base import Conditioning
from sdpo.backbones.families.flow_match import JOINT_ATTENTION, FlowMatch

T5_TOKENS = 256
"""Number of T5 tokens at which the pipeline's own call truncates a prompt."""


class StableDiffusion3(FlowMatch):
    """A transformer over image and text tokens, with two CLIP text encoders and, if the model has one, a T5.

    The last σ above 0 of the pipeline's own schedule is σ_min (0.009 with a shift of 3). The step to it has hardly any
    noise, and its log-probability is a hundred times as sensitive as other steps'. With
    `model.scheduler={shift_terminal: 0.25}` the schedule ends at a noise level that training can use.
    """

    lora_targets = JOINT_ATTENTION
    repeated_blocks = ("JointTransformerBlock",)
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode N prompts: `encoder_hidden_states` [N, L, D] and `pooled_projections` [N, P]."""
        with torch.no_grad():
            embeddings, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), None, None, self.text_device, do_classifier_free_guidance=False
            )
        return {
            "encoder_hidden_states": embeddings.to(self.device),
            "pooled_projections": pooled.to(self.device),
        }

    def token_limits(self) -> dict[str, int]:
        """The number of tokens that the CLIP tokenizers keep, and T5's if the model has a T5."""
        clip = dict.fromkeys(("tokenizer", "tokenizer_2"), int(self.pipeline.tokenizer_max_length))
        return clip | ({"tokenizer_3": T5_TOKENS} if self.pipeline.text_encoder_3 is not None else {})

    def network(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """Evaluate the transformer."""
        dtype = conditioning["encoder_hidden_states"].dtype
        return self.network_module(latents.to(dtype), timestep=timesteps, return_dict=False, **conditioning)[0]

    def schedule(self, num_steps: int) -> dict[str, Any]:
        """The scheduler's own σ, shifted by the size of the image where the scheduler asks for that."""
        dynamic = self.pipeline.scheduler.config.use_dynamic_shifting
        return {"num_inference_steps": num_steps} | ({"mu": self.shift_by_size()} if dynamic else {})

    @property
    def patch(self) -> int:
        """Side of the square of latents that becomes one token."""
        return int(self.network_config.patch_size)
