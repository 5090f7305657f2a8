"""What the loop needs of a model, whatever its pipeline class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.denoisers import Denoiser

Conditioning = dict[str, Tensor]
"""What a prompt becomes: named tensors whose first axis counts prompts."""


class Backbone(ABC):
    """A text-to-image model taken apart: encode, network, decode, and the parameters to train.

    Attributes:
        network_module: the denoising network (with its LoRA, if any).
        latent_shape: (C, H, W).
        device: where the network runs.
    """

    network_module: nn.Module
    latent_shape: tuple[int, ...]
    device: torch.device

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text embeddings of N prompts; without gradient."""

    @abstractmethod
    def network(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's raw output for latents [N, C, H, W] at timesteps [N]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images, float32 [N, 3, H, W] in [0, 1], of clean latents; without gradient."""

    @abstractmethod
    def denoiser(self, num_steps: int, eta: float) -> Denoiser:
        """The family's transitions on this model's own schedule.

        Raises:
            UserError: if the schedule cannot give that many steps.
        """

    @abstractmethod
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters to train by name, float32."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[Any]:
        """A context in which the network is the base model: LoRA off, or the initial weights swapped in."""

    @abstractmethod
    def save(self, run_dir: Path) -> Path:
        """Write the trained weights for use elsewhere, `lora/` or `model/` under run_dir; returns the folder."""

    @abstractmethod
    def generate(
        self, prompts: Sequence[str], num_steps: int, seeds: Sequence[int], guidance_scale: float
    ) -> list[Any]:
        """PIL images by the pipeline's own call: what a user gets who loads the weights elsewhere."""
