"""StableDiffusionPipeline (SD-Turbo, SD 1.5 / 2.1, the embedded model) and LatentConsistencyModelPipeline."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sdpo.backbones.base import Conditioning
from sdpo.backbones.families.unet import UNetBackbone


class StableDiffusion(UNetBackbone):
    """A UNet with one CLIP text encoder."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode N prompts with CLIP: `encoder_hidden_states` [N, L, D]."""
        with torch.no_grad():
            embeddings, _ = self.pipeline.encode_prompt(list(prompts), self.text_device, 1, False)
        return {"encoder_hidden_states": embeddings.to(self.device)}
