"""The common part of all pipeline families: image sizes, text encoders, decoder, the pipeline's own call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sdpo.backbones.base import Guidance
from sdpo.backbones.family_settings import FamilySettings, family_settings
from sdpo.backbones.saving import SavableBackbone
from sdpo.errors import UserError
from sdpo.method.denoisers.flow import Form

_TILED_ABOVE = 1024 * 1024  # pixels of an image; the decoder takes larger ones one image and one tile at a time


class PipelineBackbone(SavableBackbone):
    """A backbone around a diffusers pipeline. A family adds `encode`, `network`, `decode` and `denoiser`.

    Args:
        pipeline: a pipeline of the family's class; it is moved to `device` and its weights are frozen.
        device: the device that the pipeline runs on.
        size: height and width of images in pixels; None stands for the model's own.
        noise_form: form of the noise in the family's sampling steps, one of `noise_forms`.
        has_fused_lora: whether a LoRA was merged into the pipeline's weights, such as one that makes it a few-step
            model.

    Attributes:
        noise_forms: the forms of noise that the family supports.
        noise_form: the form of noise in this backbone's denoisers.
        channels_last: whether the network's weights lie in channels-last order, which is faster for convolutions.
        image_size: height and width of images in pixels.

    Raises:
        UserError: if the family lacks the form of noise, or the size is not a multiple of `size_multiple`.
    """

    noise_forms: ClassVar[Sequence[Form]] = ("preserving",)
    channels_last: ClassVar[bool] = False

    def __init__(
        self,
        pipeline: Any,
        device: torch.device,
        size: tuple[int | None, int | None] = (None, None),
        noise_form: Form = "preserving",
        has_fused_lora: bool = False,
    ) -> None:
        self._check_noise_form(pipeline, noise_form)
        self.noise_form = noise_form
        self.has_fused_lora = has_fused_lora
        pipeline.set_progress_bar_config(disable=True)
        super().__init__(pipeline.to(device))
        self.device = device
        self._noise_dtype: torch.dtype = pipeline.vae.dtype
        self.guidance = self.network_guidance()
        for module in (self.network_module, pipeline.vae, *self.text_modules()):
            module.requires_grad_(False).eval()
        if self.channels_last:
            self.network_module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.image_size = self._image_size(size)
        height, width = self.image_size
        self.latent_shape = (self.latent_channels, height // self.latent_scale, width // self.latent_scale)
        if height * width > _TILED_ABOVE:
            for saves_memory in ("slicing", "tiling"):
                if hasattr(pipeline.vae, f"use_{saves_memory}"):
                    getattr(pipeline.vae, f"enable_{saves_memory}")()

    def _check_noise_form(self, pipeline: Any, form: Form) -> None:
        if form not in self.noise_forms:
            raise UserError(
                f"sample.noise_form={form} is for flow models; a {type(pipeline).__name__} supports: "
                f"{', '.join(self.noise_forms)}"
            )

    def network_guidance(self) -> Guidance:
        """How this network is guided; families override it where that depends on the network's config."""
        return self.guidance

    @property
    def scheduler_settings(self) -> dict[str, Any]:
        """`class` and settings of the pipeline's scheduler, without diffusers' own entries."""
        scheduler = self.pipeline.scheduler
        settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
        plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return {"class": type(scheduler).__name__, **plain}

    @property
    def own_settings(self) -> FamilySettings:
        """The settings that the model's authors publish."""
        return family_settings(self.pipeline)

    def guidance_scale(self, setting: float | None) -> float:
        """The guidance scale that a setting means, where None is the model's own."""
        return self.own_settings.guidance_scale if setting is None else setting

    @property
    def noise_dtype(self) -> torch.dtype:
        """The type in which the pipeline's own call draws its noise: that of the frozen weights."""
        return self._noise_dtype

    # -- shapes, which families override where theirs differ -------------------------------------------------

    @property
    def latent_channels(self) -> int:
        """Number of channels of the latents, C."""
        return int(self.network_config.in_channels)

    @property
    def latent_scale(self) -> int:
        """Side of the square of pixels that becomes one latent."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def size_multiple(self) -> int:
        """Height and width in pixels must be multiples of this number."""
        return self.latent_scale

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained for."""
        latents = self.network_config.sample_size
        height, width = (latents, latents) if isinstance(latents, int) else latents
        return height * self.latent_scale, width * self.latent_scale

    def _image_size(self, size: tuple[int | None, int | None]) -> tuple[int, int]:
        height, width = (own or default for own, default in zip(size, self.default_size, strict=True))
        multiple = self.size_multiple
        if height % multiple or width % multiple:
            raise UserError(f"model.height and model.width must be multiples of {multiple}, got {height} and {width}")
        return height, width

    # -- helpers for the families ----------------------------------------------------------------------------

    @property
    def network_config(self) -> Any:
        """The contents of the network's config.json."""
        return getattr(self.pipeline, self.component).config

    @property
    def text_device(self) -> torch.device:
        """The device of the text encoders, where `encode` runs before its result is moved to `device`.

        Raises:
            UserError: if the text encoders were freed.
        """
        modules = self.text_modules()
        if not modules:
            raise UserError(
                "the text encoders were freed (model.text_encoders=free), but a new prompt has to be encoded: set "
                "model.text_encoders=cpu"
            )
        return next(modules[0].parameters()).device

    def token_limits(self) -> dict[str, int]:
        """The number of tokens of a text that each of the pipeline's tokenizers keeps, by the tokenizer's name."""
        return {"tokenizer": int(self.pipeline.tokenizer.model_max_length)}

    def tokenized_text(self, prompt: str) -> str:
        """The text that is tokenized for a prompt; some pipelines put instructions around it."""
        return prompt

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that every text encoder of the model cuts, so that nothing reads their ends.

        Args:
            prompts: N prompts.
        """
        texts = [self.tokenized_text(prompt) for prompt in prompts]
        cut = [True] * len(texts)
        for name, limit in self.token_limits().items():
            tokens = getattr(self.pipeline, name)(texts, verbose=False).input_ids if texts else []
            cut = [before and len(row) > limit for before, row in zip(cut, tokens, strict=True)]
        return [prompt for prompt, is_cut in zip(prompts, cut, strict=True) if is_cut]

    def release_text_encoders(self, how: Literal["cpu", "free"]) -> None:
        """Free the device's memory once all prompts are encoded.

        Args:
            how: `cpu` moves the text encoders to the CPU, where they still encode, slowly; `free` deletes them.
        """
        for name in self.text_encoders:
            module = getattr(self.pipeline, name, None)
            if module is not None and how == "cpu":
                module.to("cpu")
            elif module is not None:
                setattr(self.pipeline, name, None)

    def checkpoint_activations(self) -> None:
        """Recompute the activations of the network, and of the decoder where it can, in the backward pass."""
        super().checkpoint_activations()
        if getattr(self.pipeline.vae, "_supports_gradient_checkpointing", False):
            self.pipeline.vae.enable_gradient_checkpointing()

    @property
    def decoder_scales(self) -> tuple[float, ...]:
        """The factors of an objective to try, in order: gradients in float16 underflow without one."""
        return (1024.0, 32.0, 1.0) if self.pipeline.vae.dtype == torch.float16 else (1.0,)

    def decode_with_vae(self, latents: Tensor, gradient: bool = False) -> Tensor:
        """Decode latents in the decoder's own scale to images [N, 3, H, W] in [0, 1].

        A decoder that overflows in float16 runs in float32, as in the pipelines' own calls. After a call with gradient
        it stays in float32, since the backward pass needs these weights.

        Args:
            latents: latents in the decoder's own scale, [N, C, H, W].
            gradient: whether autograd records the call.
        """
        vae = self.pipeline.vae
        dtype = vae.dtype
        upcast = dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
        if upcast:
            vae.float()
        try:
            with torch.set_grad_enabled(gradient):
                pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        finally:
            if upcast and not gradient:
                vae.to(dtype)
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def call_arguments(self, num_steps: int, guidance_scale: float) -> dict[str, Any]:
        """Arguments of the pipeline's own call besides prompt, size, number of steps and generator.

        Args:
            num_steps: number of sampling steps.
            guidance_scale: the policy's guidance scale, where 1 is none. A family whose pipeline defines the scale
                differently converts it here.
        """
        return {"guidance_scale": guidance_scale}

    def generate(
        self, prompts: Sequence[str], num_steps: int, seeds: Sequence[int], guidance_scale: float
    ) -> list[Any]:
        """Draw PIL images by the pipeline's own call, as a user who loads the weights elsewhere would.

        Args:
            prompts: N prompts.
            num_steps: number of sampling steps.
            seeds: N seeds; image i is drawn with the generator `torch.Generator().manual_seed(seeds[i])`.
            guidance_scale: the policy's guidance scale, where 1 is none.
        """
        height, width = self.image_size
        images: list[Any] = []
        for prompt, seed in zip(prompts, seeds, strict=True):  # one call an image, so that no image depends on another
            images += self.pipeline(
                prompt=prompt,
                num_inference_steps=num_steps,
                generator=torch.Generator().manual_seed(seed),
                height=height,
                width=width,
                **self.call_arguments(num_steps, guidance_scale),
            ).images
        return images
