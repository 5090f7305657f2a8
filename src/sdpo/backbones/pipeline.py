"""What all families of diffusers pipelines share besides training: sizes, text encoders, decoder, the own call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sdpo.backbones.training import TrainableBackbone
from sdpo.errors import UserError
from sdpo.method.denoisers.flow import Form

_TILED_FROM = 1024 * 1024  # pixels of an image above which the decoder works on one image and one tile at a time


class PipelineBackbone(TrainableBackbone):
    """A backbone around a diffusers pipeline. A family adds `encode`, `network`, `decode` and `denoiser`.

    Args:
        pipeline: of the family's class; it is moved to `device` and its weights are frozen.
        device: where it runs.
        size: height and width in pixels; None is the model's own.

    Attributes:
        noise_forms: what the noise of the family's steps can be like.
        noise_form: which of them it is.
        channels_last: the memory format of the network's weights; faster for convolutions.

    Raises:
        UserError: if the size is no multiple of what the model works in.
    """

    noise_forms: ClassVar[Sequence[Form]] = ("preserving",)
    noise_form: Form = "preserving"
    channels_last: ClassVar[bool] = False

    def __init__(self, pipeline: Any, device: torch.device, size: tuple[int | None, int | None] = (None, None)) -> None:
        pipeline.set_progress_bar_config(disable=True)
        super().__init__(pipeline.to(device))
        self.device = device
        for module in (self.network_module, pipeline.vae, *self.text_modules()):
            module.requires_grad_(False).eval()
        if self.channels_last:
            self.network_module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.image_size = self._image_size(size)
        height, width = self.image_size
        self.latent_shape = (self.latent_channels, height // self.latent_scale, width // self.latent_scale)
        if height * width > _TILED_FROM:
            for saves_memory in ("slicing", "tiling"):
                if hasattr(pipeline.vae, f"use_{saves_memory}"):
                    getattr(pipeline.vae, f"enable_{saves_memory}")()

    # -- shapes, overridden where a family counts otherwise ------------------------------------------------

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        return int(self.network_config.in_channels)

    @property
    def latent_scale(self) -> int:
        """Pixels a side of what becomes one latent."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def size_multiple(self) -> int:
        """What height and width must be multiples of."""
        return self.latent_scale

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was made for."""
        latents = self.network_config.sample_size
        height, width = (latents, latents) if isinstance(latents, int) else latents
        return height * self.latent_scale, width * self.latent_scale

    def _image_size(self, size: tuple[int | None, int | None]) -> tuple[int, int]:
        height, width = (own or default for own, default in zip(size, self.default_size, strict=True))
        multiple = self.size_multiple
        if height % multiple or width % multiple:
            raise UserError(f"model.height and model.width must be multiples of {multiple}, got {height} and {width}")
        return height, width

    # -- helpers of the families -----------------------------------------------------------------------------

    @property
    def network_config(self) -> Any:
        """What the network's config.json says."""
        return getattr(self.pipeline, self.component).config

    @property
    def text_device(self) -> torch.device:
        """Where the text encoders are, and so where `encode` runs; its result belongs on `device`."""
        modules = self.text_modules()
        if not modules:
            raise UserError(
                "the text encoders were freed (model.text_encoders=free), and a prompt came that was not known before: "
                "use model.text_encoders=cpu"
            )
        return next(modules[0].parameters()).device

    def release_text_encoders(self, how: Literal["cpu", "free"]) -> None:
        """Make room once all prompts are encoded: on the CPU they still encode, if slowly; freed ones are gone."""
        for name in self.text_encoders:
            module = getattr(self.pipeline, name, None)
            if module is not None and how == "cpu":
                module.to("cpu")
            elif module is not None:
                setattr(self.pipeline, name, None)

    def decode_with_vae(self, latents: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] of latents in the decoder's own scale.

        A decoder that overflows in float16 works in float32, as in the pipelines' own calls.
        """
        vae = self.pipeline.vae
        dtype = vae.dtype
        upcast = dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
        if upcast:
            vae.float()
        try:
            with torch.no_grad():
                pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        finally:
            if upcast:
                vae.to(dtype)
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def call_arguments(self, num_steps: int, guidance_scale: float) -> dict[str, Any]:
        """What the pipeline's own call is given besides prompt, size, number of steps and generator.

        `guidance_scale` is that of the policy, 1 for none: a family whose call counts otherwise converts it here.
        """
        return {"guidance_scale": guidance_scale}

    def generate(
        self, prompts: Sequence[str], num_steps: int, seeds: Sequence[int], guidance_scale: float
    ) -> list[Any]:
        """PIL images by the pipeline's own call: what a user gets who loads the weights elsewhere.

        Image i has the generator `torch.Generator().manual_seed(seeds[i])`.
        """
        height, width = self.image_size
        images: list[Any] = []
        for prompt, seed in zip(prompts, seeds, strict=True):  # one by one: an image never depends on its neighbours
            images += self.pipeline(
                prompt=prompt,
                num_inference_steps=num_steps,
                generator=torch.Generator().manual_seed(seed),
                height=height,
                width=width,
                **self.call_arguments(num_steps, guidance_scale),
            ).images
        return images
