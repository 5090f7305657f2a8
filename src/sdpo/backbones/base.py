"""What the loop needs of a model, and what assembly needs of a pipeline family besides."""

from __future__ import annotations

import os
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
    """A text-to-image model taken apart for the loop: encode, network, decode, and the parameters to train.

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


class PipelineBackbone(Backbone):
    """A backbone around a diffusers pipeline: also chooses what is trained, and brings weights in and out."""

    @abstractmethod
    def train_lora(self, rank: int, alpha: float, targets: Sequence[str] | None, path: str | None = None) -> None:
        """Add a LoRA to the network and train it alone.

        Args:
            rank: LoRA rank.
            alpha: LoRA alpha; the update is scaled by alpha / rank.
            targets: suffixes of module names; None is the attention projections.
            path: a LoRA folder or file to start from, of the same rank and alpha; its own targets are trained.

        Raises:
            UserError: if no module has such a name, or the LoRA cannot be loaded.
        """

    @abstractmethod
    def train_all(self) -> None:
        """Train every weight of the network, in float32; a frozen copy of the base stays for `reference`."""

    @abstractmethod
    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory, a third more time."""

    @abstractmethod
    def compile(self, undo: bool = False) -> None:
        """Let torch compile the blocks that the network repeats, each kind once; or go back."""

    @abstractmethod
    def load_lora(self, path: Path) -> None:
        """Attach a finished LoRA for sampling, by diffusers' own loader.

        Raises:
            UserError: if it is none of this model's.
        """

    @abstractmethod
    def save(self, run_dir: Path) -> Path:
        """Write the trained weights for use elsewhere, `lora/` or `model/` under run_dir; returns the folder."""

    @abstractmethod
    def generate(
        self, prompts: Sequence[str], num_steps: int, seeds: Sequence[int], guidance_scale: float
    ) -> list[Any]:
        """PIL images by the pipeline's own call: what a user gets who loads the weights elsewhere."""


def open_to_others(folder: Path) -> None:
    """Give files the permissions that the user's umask allows; safetensors makes them readable by their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
