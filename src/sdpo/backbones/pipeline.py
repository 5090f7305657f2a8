"""What all families of diffusers pipelines have in common: what is trained, and how weights come in and go out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sdpo.backbones import lora
from sdpo.backbones.base import Backbone
from sdpo.errors import UserError

_TILED_FROM = 1024 * 1024  # pixels of an image above which the decoder works on tiles


class PipelineBackbone(Backbone):
    """A backbone around a diffusers pipeline. A family adds `encode`, `network`, `decode` and `denoiser`.

    Args:
        pipeline: of the family's class; it is moved to `device` and its weights are frozen.
        device: where it runs.
        size: height and width in pixels; None is the model's own.

    Attributes:
        component: the pipeline's denoising network, `unet` or `transformer`.
        lora_targets: suffixes of the modules that a LoRA is put on unless the user names others.
        repeated_blocks: classes that torch.compile takes, one by one; empty: those that the network names itself.
        text_encoders: the pipeline's text encoders; a model may lack some.
        channels_last: the memory format of the network's weights; faster for convolutions.

    Raises:
        UserError: if the size is no multiple of what the model works in.
    """

    component: ClassVar[str] = "transformer"
    lora_targets: ClassVar[Sequence[str]] = ("to_q", "to_k", "to_v", "to_out.0")
    repeated_blocks: ClassVar[Sequence[str]] = ()
    text_encoders: ClassVar[Sequence[str]] = ("text_encoder",)
    channels_last: ClassVar[bool] = False

    def __init__(self, pipeline: Any, device: torch.device, size: tuple[int | None, int | None] = (None, None)) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline.to(device)
        self.device = device
        self.network_module: nn.Module = getattr(pipeline, self.component)
        for module in (self.network_module, pipeline.vae, *self._text_modules()):
            module.requires_grad_(False).eval()
        if self.channels_last:
            self.network_module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.image_size = self._image_size(size)
        height, width = self.image_size
        self.latent_shape = (self.latent_channels, height // self.latent_scale, width // self.latent_scale)
        if height * width > _TILED_FROM:
            pipeline.vae.enable_tiling()
        self._initial: dict[str, Tensor] | None = None  # a copy of the base weights when all are trained

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
        modules = self._text_modules()
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

    def _text_modules(self) -> list[nn.Module]:
        found = (getattr(self.pipeline, name, None) for name in self.text_encoders)
        return [module for module in found if module is not None]

    # -- what is trained -------------------------------------------------------------------------------------

    def train_lora(self, rank: int, alpha: float, targets: Sequence[str] | None, path: str | None = None) -> None:
        """Add a LoRA to the network and train it alone.

        Args:
            rank: LoRA rank.
            alpha: LoRA alpha; the update is scaled by alpha / rank.
            targets: suffixes of module names; None is `lora_targets`.
            path: a LoRA folder or file to start from, of the same rank and alpha; its own targets are trained.

        Raises:
            UserError: if no module has such a name, or the LoRA cannot be loaded.
        """
        if path is None:
            lora.add(self.network_module, rank, alpha, targets or self.lora_targets)
        else:
            self.load_lora(Path(path))
            lora.check_continued(self.network_module, self._text_modules(), path, rank, alpha)
        lora.make_trainable(self.network_module)

    def train_all(self) -> None:
        """Train every weight of the network, in float32; a frozen copy of the base stays for `reference`."""
        self.network_module.float().requires_grad_(True)
        self._initial = {n: p.detach().clone() for n, p in self.network_module.named_parameters()}

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """See `Backbone.trainable_parameters`."""
        return {n: p for n, p in self.network_module.named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """See `Backbone.reference`."""
        network: Any = self.network_module
        if self._initial is not None:
            trained = {n: p.data for n, p in network.named_parameters()}
            self._set(self._initial)
            try:
                yield
            finally:
                self._set(trained)
        elif self._has_lora:
            network.disable_adapters()
            try:
                yield
            finally:
                network.enable_adapters()
        else:
            yield

    def _set(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.network_module.named_parameters():
            parameter.data = weights[name]

    @property
    def _has_lora(self) -> bool:
        return lora.ADAPTER in getattr(self.network_module, "peft_config", {})

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory, a third more time."""
        network: Any = self.network_module
        network.enable_gradient_checkpointing()

    def compile(self, undo: bool = False) -> None:
        """Let torch compile the blocks that the network repeats, each kind once; or go back."""
        repeated = self.repeated_blocks or getattr(self.network_module, "_repeated_blocks", None) or ()
        # The blocks of a class share code but not sizes: one variant for each, where dynamo stops at eight.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for module in self.network_module.modules():
            if type(module).__name__ in repeated:
                if undo:
                    module._compiled_call_impl = None
                else:
                    module.compile(dynamic=True)

    # -- in and out ------------------------------------------------------------------------------------------

    def load_lora(self, path: Path) -> None:
        """Attach a finished LoRA for sampling, by diffusers' own loader.

        Raises:
            UserError: if it is none of this model's.
        """
        lora.load(self.pipeline, path)

    def save(self, run_dir: Path) -> Path:
        """Write the trained weights for use elsewhere, `lora/` or a whole pipeline in `model/`; returns the folder."""
        if self._has_lora:
            folder = run_dir / "lora"
            lora.save(self.pipeline, self.component, folder)
        else:
            folder = run_dir / "model"
            self.pipeline.save_pretrained(folder, safe_serialization=True)
        _open_to_others(folder)
        return folder

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
                prompt,
                num_inference_steps=num_steps,
                generator=torch.Generator().manual_seed(seed),
                height=height,
                width=width,
                **self.call_arguments(num_steps, guidance_scale),
            ).images
        return images


def _open_to_others(folder: Path) -> None:
    """Give files the permissions that the user's umask allows; safetensors makes them readable by their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
