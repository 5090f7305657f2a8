"""The one forward path of rollout and update: backbone, guidance, precision and denoiser make a transition."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdpo.backbones import Backbone, Conditioning
from sdpo.errors import UserError
from sdpo.method.denoisers import Denoiser, Transition


class PromptEmbeddings:
    """The embeddings of a run's prompts, each encoded once.

    Args:
        backbone: the model that encodes prompts.
        prompts: the prompts to encode now; others are encoded when they are first asked for.
        batch_size: prompts an encoder call.
    """

    def __init__(self, backbone: Backbone, prompts: Iterable[str] = (), batch_size: int = 32) -> None:
        self._backbone = backbone
        self._batch_size = batch_size
        self._rows: dict[str, int] = {}
        self._table: Conditioning = {}
        self._add(list(prompts))

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """The embeddings of N prompts, in order."""
        return self.take(self.rows(prompts))

    def rows(self, prompts: Sequence[str]) -> Tensor:
        """The places of N prompts among the embeddings, int64 [N], on the device."""
        self._add(prompts)
        return to_device(torch.tensor([self._rows[p] for p in prompts]), self._backbone.device)

    def take(self, rows: Tensor) -> Conditioning:
        """The embeddings at given places, int64 [N]; the host does not wait for the device."""
        return {name: table[rows] for name, table in self._table.items()}

    def _add(self, prompts: Sequence[str]) -> None:
        new = [p for p in dict.fromkeys(prompts) if p not in self._rows]
        chunks = [new[start : start + self._batch_size] for start in range(0, len(new), self._batch_size)]
        encoded = [self._table] * bool(self._rows) + [self._backbone.encode(chunk) for chunk in chunks]
        if new:
            self._table = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
            self._rows.update({p: len(self._rows) + i for i, p in enumerate(new)})


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to the device; the host does not wait for the copy."""
    if device.type == "cpu":
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Policy:
    """The policy p_θ(x_{i+1} | x_i, prompt) of a backbone.

    Args:
        backbone: the model.
        guidance_scale: the scale of guidance; 1 switches classifier-free guidance off, which else evaluates the network
            twice. A network that embeds guidance is given the scale, also if it is 1.
        dtype: the type that the network computes in; trained parameters stay float32 under autocast.

    Attributes:
        evaluations: evaluations of the network so far, for one latent each.
        with_gradient: evaluations of the network so far that autograd recorded.

    Raises:
        UserError: if the model has no use for a guidance scale and is given one.
    """

    def __init__(self, backbone: Backbone, guidance_scale: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        self.backbone = backbone
        self.guidance_scale = guidance_scale
        self.dtype = dtype
        self.evaluations = 0
        self.with_gradient = 0
        if backbone.guidance == "none" and guidance_scale != 1.0:
            raise UserError(
                f"sample.guidance_scale is {guidance_scale:g}, but this model was distilled to do without guidance: "
                "set it to 1.0"
            )
        self._unconditional = backbone.unconditional() if self.guided else {}

    @property
    def guided(self) -> bool:
        """Whether the network is evaluated twice a step."""
        return self.backbone.guidance == "classifier-free" and self.guidance_scale != 1.0

    def autocast(self) -> torch.autocast:
        """The context in which the network computes."""
        return torch.autocast(self.backbone.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def no_gradient(self) -> contextlib.AbstractContextManager[Any]:
        """The context of network calls without gradient.

        A sharded network does not use inference mode: the weights that such a call gathers lie in buffers that later
        calls with gradient use again.
        """
        return torch.no_grad() if self.backbone.is_sharded else torch.inference_mode()

    def transition(
        self, denoiser: Denoiser, latents: Tensor, step_index: Tensor, conditioning: Conditioning
    ) -> Transition:
        """Evaluate the network once for N latents.

        Args:
            denoiser: the schedule.
            latents: [N, C, H, W].
            step_index: the step of each latent, int64 [N], on the device.
            conditioning: the embeddings of the N prompts.

        Returns:
            The transition of each latent to its next step.
        """
        timesteps = denoiser.timesteps[step_index]
        evaluations = len(latents) * (2 if self.guided else 1)
        self.evaluations += evaluations
        self.with_gradient += evaluations * torch.is_grad_enabled()
        with self.autocast():
            if self.guided:
                n = len(latents)
                both = {k: torch.cat([self._unconditional[k].expand_as(v), v]) for k, v in conditioning.items()}
                output = self.backbone.network(torch.cat([latents] * 2), torch.cat([timesteps] * 2), both)
                without, with_prompt = output[:n], output[n:]
                output = without + self.guidance_scale * (with_prompt - without)
            elif self.backbone.guidance == "embedded":
                output = self.backbone.network(latents, timesteps, conditioning, self.guidance_scale)
            else:
                output = self.backbone.network(latents, timesteps, conditioning)
        return denoiser.transition(latents, output, step_index)
