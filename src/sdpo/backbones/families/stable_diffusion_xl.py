"""StableDiffusionXLPipeline: SDXL-Turbo, SDXL-Lightning, SDXL."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sdpo.backbones.base import Conditioning
from sdpo.backbones.families.unet import UNetBackbone


class StableDiffusionXL(UNetBackbone):
    """A UNet that also takes the pooled embedding and the image size, with two CLIP text encoders."""

    text_encoders = ("text_encoder", "text_encoder_2")

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode N prompts: `encoder_hidden_states` [N, L, D], `text_embeds` [N, P] and `time_ids` [N, 6]."""
        with torch.no_grad():
            hidden, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), device=self.text_device, do_classifier_free_guidance=False
            )
        ids = self.pipeline._get_add_time_ids(
            self.image_size, (0, 0), self.image_size, hidden.dtype, text_encoder_projection_dim=pooled.shape[-1]
        )
        found = {"encoder_hidden_states": hidden, "text_embeds": pooled, "time_ids": ids.repeat(len(prompts), 1)}
        return {name: rows.to(self.device) for name, rows in found.items()}

    def token_limits(self) -> dict[str, int]:
        """The number of tokens that each CLIP tokenizer keeps."""
        return {name: int(getattr(self.pipeline, name).model_max_length) for name in ("tokenizer", "tokenizer_2")}

    def unconditional(self) -> Conditioning:
        """Encode the empty prompt, as zeros where the pipeline's config asks for zeros."""
        found = self.encode([""])
        if self.pipeline.config.force_zeros_for_empty_prompt:
            found |= {name: torch.zeros_like(found[name]) for name in ("encoder_hidden_states", "text_embeds")}
        return found
