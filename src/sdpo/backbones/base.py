"""The interface between a text-to-image model and the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdpo.method.denoisers import Denoiser

Conditioning = dict[str, Tensor]
"""An encoded batch of prompts: named tensors whose first axis counts prompts.

Shapes do not depend on the prompt. Embeddings of varying length are padded to one length and come with a mask, so that
different prompts can share a batch.
"""

Guidance = Literal["classifier-free", "embedded", "none"]


class Backbone(ABC):
    """A text-to-image model, split into the parts that the loop calls: encode, network, decode, trained parameters.

    Attributes:
        network_module: the denoising network, with its LoRA if it has one.
        latent_shape: shape of one sample's latents in the loop, (C, H, W); `network` may pack them for its own use.
        device: device that the network computes on.
        guidance: how the network is guided. `classifier-free`: the policy evaluates it twice, with and without the
            prompt; `embedded`: the guidance scale is an input of the network, and one evaluation is enough; `none`: the
            network was distilled to sample without guidance and accepts no scale.
        image_size: height and width of images in pixels.
    """

    network_module: nn.Module
    latent_shape: tuple[int, ...]
    device: torch.device
    guidance: Guidance = "classifier-free"
    image_size: tuple[int, int]

    @property
    def scheduler_settings(self) -> dict[str, Any]:
        """`class` and settings of the scheduler that the model's own sampler runs on, as plain values."""
        return {}

    @property
    def decoder_scales(self) -> tuple[float, ...]:
        """The factors of an objective to try, in order, when its gradient passes the decoder backwards."""
        return (1.0,)

    @property
    def is_sharded(self) -> bool:
        """Whether the network's weights are sharded over ranks, which must then call the network equally often."""
        return False

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode N prompts, without gradient; every tensor is [N, ...]."""

    def unconditional(self) -> Conditioning:
        """Encode the empty prompt of classifier-free guidance; every tensor is [1, ...]."""
        return self.encode([""])

    @abstractmethod
    def network(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """Evaluate the denoising network.

        Args:
            latents: Noisy latents, float32 [N, C, H, W].
            timesteps: Timesteps as the denoiser counts them, [N].
            conditioning: The encoded prompts, tensors [N, ...].
            guidance_scale: Guidance scale of networks whose `guidance` is `embedded`; 1 for all others.

        Returns:
            The network's raw output, [N, C, H, W].
        """

    @abstractmethod
    def decode(self, latents: Tensor, gradient: bool = False) -> Tensor:
        """Decode clean latents to images.

        Args:
            latents: Clean latents, [N, C, H, W].
            gradient: Whether autograd records the call, for a reward whose gradient reaches the latents.

        Returns:
            Images, float32 [N, 3, H, W] in [0, 1]. Values that are clamped to this range pass no gradient.
        """

    @abstractmethod
    def denoiser(self, num_steps: int, eta: float) -> Denoiser:
        """Build the transitions of `num_steps` sampling steps with noise level η, on this model's own schedule.

        Raises:
            UserError: The schedule has no such number of steps, or the model's family has no transition with that η.
        """

    @property
    def own_eta(self) -> float:
        """η of the sampler that users of the model run: 0 where it is deterministic, 1 where steps draw fresh noise."""
        return 0.0

    @property
    def noise_dtype(self) -> torch.dtype:
        """The type in which the sampler that users of the model run draws its noise."""
        return torch.float32

    def own_sampler(self, num_steps: int) -> Denoiser:
        """Build the transitions of the sampler that users of the model run, on this model's own schedule.

        Raises:
            UserError: The schedule has no such number of steps, or the sampler is not supported.
        """
        return self.denoiser(num_steps, self.own_eta)

    def own_noise(self, seed: int, num_steps: int) -> Tensor:
        """Draw the noise that the model's own sampler draws for one image from a generator with this seed.

        Args:
            seed: The seed, as in `torch.Generator().manual_seed(seed)`.
            num_steps: Number of sampling steps, T.

        Returns:
            The starting noise and that of each step, float32 [T + 1, C, H, W], on the CPU.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = self.latent_shape  # one call a draw: the numbers depend on the size of the call
        draws = [torch.randn(shape, generator=generator, dtype=self.noise_dtype) for _ in range(num_steps + 1)]
        return torch.stack(draws).float()

    @abstractmethod
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters to train, float32, by name."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[Any]:
        """A context in which the network is the model that KL penalties and preferences refer to.

        This is the base model, whose LoRA is off or whose initial weights are swapped in, unless the run asked for the
        model that it starts from.
        """

    def base(self) -> AbstractContextManager[Any]:
        """A context in which the network is the base model."""
        return self.reference()
