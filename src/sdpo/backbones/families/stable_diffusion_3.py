"""StableDiffusion3Pipeline: SD 3.5 large turbo, large and medium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdpo.backbones.base import Conditioning
from sdpo.backbones.families.flow_match import JOINT_ATTENTION, FlowMatch


class StableDiffusion3(FlowMatch):
    """A transformer over image and text tokens, two CLIP text encoders and (if the model has it) a T5.

    The pipeline's own schedule ends at σ_min (0.009 with a shift of 3) before 0. The step there has hardly any noise:
    its log-probability is a hundred times as sensitive as that of other steps. `model.scheduler={shift_terminal: 0.25}`
    lets the schedule end where noise is worth learning from.
    """

    lora_targets = JOINT_ATTENTION
    repeated_blocks = ("JointTransformerBlock",)
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """See `Backbone.encode`; returns `encoder_hidden_states` [N, L, D] and `pooled_projections` [N, P]."""
        with torch.no_grad():
            embeddings, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), None, None, self.text_device, do_classifier_free_guidance=False
            )
        return {
            "encoder_hidden_states": embeddings.to(self.device),
            "pooled_projections": pooled.to(self.device),
        }

    def network(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """See `Backbone.network`."""
        dtype = conditioning["encoder_hidden_states"].dtype
        return self.network_module(latents.to(dtype), timestep=timesteps, return_dict=False, **conditioning)[0]

    def schedule(self, num_steps: int) -> dict[str, Any]:
        """See `FlowMatch.schedule`."""
        dynamic = self.pipeline.scheduler.config.use_dynamic_shifting
        return {"num_inference_steps": num_steps} | ({"mu": self.shift_by_size()} if dynamic else {})

    @property
    def patch(self) -> int:
        """See `FlowMatch.patch`."""
        return int(self.network_config.patch_size)
