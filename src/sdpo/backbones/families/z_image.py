"""ZImagePipeline: Z-Image-Turbo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdpo.backbones.base import Conditioning
from sdpo.backbones.families.flow_match import FlowMatch

TOKENS = 512
"""Number of tokens at which the pipeline's own call truncates a prompt."""


class ZImage(FlowMatch):
    """A transformer over one sequence of image and caption tokens; a language model encodes prompts."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode N prompts: padded `embeddings` [N, TOKENS, D] and the number of tokens in each, `lengths` [N]."""
        with torch.no_grad():
            captions, _ = self.pipeline.encode_prompt(
                list(prompts), self.text_device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
            )
        padded = [functional.pad(caption, (0, 0, 0, TOKENS - len(caption))) for caption in captions]
        lengths = torch.tensor([len(caption) for caption in captions])
        return {"embeddings": torch.stack(padded).to(self.device), "lengths": lengths.to(self.device)}

    def token_limits(self) -> dict[str, int]:
        """The number of tokens that the pipeline's own call keeps, the turns of the conversation included."""
        return {"tokenizer": TOKENS}

    def tokenized_text(self, prompt: str) -> str:
        """The prompt as the user's turn of a conversation."""
        turn = [{"role": "user", "content": prompt}]
        template = self.pipeline.tokenizer.apply_chat_template
        return str(template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=True))

    def network(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """Evaluate the transformer, which predicts x̂ − ε, and return the velocity ε − x̂."""
        embeddings = conditioning["embeddings"]
        # The network takes a list of captions, so the host needs their lengths and waits for the device once a call.
        captions = [row[:length] for row, length in zip(embeddings, conditioning["lengths"].tolist(), strict=True)]
        frames = list(latents.to(embeddings.dtype).unsqueeze(2).unbind())
        output = self.network_module(frames, (1000 - timesteps) / 1000, captions, return_dict=False)[0]
        return -torch.stack(output).squeeze(2).float()

    def schedule(self, num_steps: int) -> dict[str, Any]:
        """Evenly spaced σ, shifted by the size of the image."""
        return {"sigmas": torch.linspace(1.0, 1 / num_steps, num_steps).tolist(), "mu": self.shift_by_size()}

    @property
    def noise_dtype(self) -> torch.dtype:
        """The pipeline's own call draws its noise in float32, whatever the weights' type."""
        return torch.float32

    def call_arguments(self, num_steps: int, guidance_scale: float) -> dict[str, Any]:
        """Arguments for guidance; the pipeline's guidance scale is 0 where the policy's is 1."""
        return {"guidance_scale": guidance_scale - 1}

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained for."""
        return 1024, 1024
