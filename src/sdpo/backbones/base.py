"""What the loop needs of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdpo.method.denoisers import Denoiser

Conditioning = dict[str, Tensor]
"""What a prompt becomes: named tensors whose first axis counts prompts, of shapes that do not depend on the prompt.

Embeddings of varying length are padded to one length and come with a mask, so that prompts can share a batch.
"""

Guidance = Literal["classifier-free", "embedded", "none"]


class Backbone(ABC):
    """A text-to-image model taken apart for the loop: encode, network, decode, and the parameters to train.

    Attributes:
        network_module: the denoising network (with its LoRA, if any).
        latent_shape: of one sample as the loop holds it, (C, H, W); `network` may pack it inside.
        device: where the network runs.
        guidance: how the network takes a guidance scale. `classifier-free`: not at all, the policy asks twice;
            `embedded`: as an input, one call does both; `none`: it has no use for one.
        is_sharded: whether the network's weights are spread over processes, which must then call it equally often.
    """

    network_module: nn.Module
    latent_shape: tuple[int, ...]
    device: torch.device
    guidance: Guidance = "classifier-free"
    is_sharded: bool = False

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text embeddings of N prompts; without gradient."""

    def unconditional(self) -> Conditioning:
        """The embedding, [1, ...], that classifier-free guidance leads away from."""
        return self.encode([""])

    @abstractmethod
    def network(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """The network's raw output for latents [N, C, H, W], of their shape.

        Args:
            latents: noisy, float32.
            timesteps: the denoiser's, [N].
            conditioning: tensors [N, ...].
            guidance_scale: for networks whose guidance is `embedded`; others are never given one.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images, float32 [N, 3, H, W] in [0, 1], of clean latents; without gradient."""

    @abstractmethod
    def denoiser(self, num_steps: int, eta: float) -> Denoiser:
        """The family's transitions on this model's own schedule.

        Raises:
            UserError: if the schedule cannot give that many steps, or the family has no transition of that η.
        """

    @abstractmethod
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters to train by name, float32."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[Any]:
        """A context in which the network is the base model: LoRA off, or the initial weights swapped in."""
