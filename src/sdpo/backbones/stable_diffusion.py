"""StableDiffusionPipeline: SD-Turbo, SD 1.5 / 2.1 and the embedded model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from sdpo.backbones.base import Conditioning, PipelineBackbone, open_to_others
from sdpo.denoisers import DDIM
from sdpo.errors import UserError

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
ADAPTER = "default"
REPEATED = ("BasicTransformerBlock", "ResnetBlock2D")  # what torch.compile takes, class by class


class StableDiffusion(PipelineBackbone):
    """A UNet with one CLIP text encoder, stochastic DDIM on the pipeline's own betas.

    Args:
        pipeline: a StableDiffusionPipeline; it is moved to `device` and its weights are frozen.
        device: where it runs.
        size: height and width in pixels; None is the model's own.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        device: torch.device,
        size: tuple[int | None, int | None] = (None, None),
    ) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline.to(device)
        self.device = device
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.requires_grad_(False).eval()
        pipeline.unet.to(memory_format=torch.channels_last)
        self.network_module: nn.Module = pipeline.unet
        factor = pipeline.vae_scale_factor
        height, width = (s or pipeline.unet.config.sample_size * factor for s in size)
        if height % factor or width % factor:
            raise UserError(f"model.height and model.width must be multiples of {factor}, got {height} and {width}")
        self.latent_shape = (pipeline.unet.config.in_channels, height // factor, width // factor)
        self._initial: dict[str, Tensor] | None = None  # a copy of the base weights when all are trained
        self._lora_config: LoraConfig | None = None

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """See `Backbone.encode`; returns `encoder_hidden_states` [N, L, D]."""
        with torch.no_grad():
            embeddings, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        return {"encoder_hidden_states": embeddings}

    def network(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Backbone.network`."""
        dtype = conditioning["encoder_hidden_states"].dtype
        return self.network_module(
            latents.to(dtype, memory_format=torch.channels_last), timesteps, return_dict=False, **conditioning
        )[0]

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`."""
        vae = self.pipeline.vae
        with torch.no_grad():
            pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def denoiser(self, num_steps: int, eta: float) -> DDIM:
        """See `Backbone.denoiser`."""
        scheduler = self.pipeline.scheduler
        try:
            return DDIM(scheduler.alphas_cumprod, num_steps, scheduler.config.prediction_type, eta, self.device)
        except ValueError as error:
            raise UserError(str(error)) from error

    # -- what is trained -------------------------------------------------------------------------------

    def train_lora(self, rank: int, alpha: float, targets: Sequence[str] | None, path: str | None = None) -> None:
        """See `PipelineBackbone.train_lora`."""
        unet = self.pipeline.unet
        if path is not None:
            self._continue_lora(path, rank, alpha)
        else:
            config = LoraConfig(
                r=rank, lora_alpha=alpha, target_modules=list(targets or ATTENTION), init_lora_weights="gaussian"
            )
            try:
                unet.add_adapter(config, adapter_name=ADAPTER)
            except ValueError as error:
                raise UserError(f"lora.targets: {error}") from error
        for name, parameter in unet.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
        self._lora_config = unet.peft_config[ADAPTER]

    def _continue_lora(self, path: str, rank: int, alpha: float) -> None:
        """Attach a LoRA by diffusers' loader, which knows its targets, rank and alpha; the settings must agree."""
        self.load_lora(Path(path))
        if any(".lora_" in name for name, _ in self.pipeline.text_encoder.named_parameters()):
            raise UserError(f"lora.path: {path} has weights for the text encoder, which is not trained")
        found = getattr(self.pipeline.unet, "peft_config", {}).get(ADAPTER)
        if found is None:
            raise UserError(f"lora.path: {path} has no weights for the denoising network")
        if (found.r, found.lora_alpha) != (rank, alpha):
            raise UserError(
                f"lora.path: {path} has rank {found.r} and alpha {found.lora_alpha:g}, the settings rank {rank} and "
                f"alpha {alpha:g}: set lora.rank={found.r} lora.alpha={found.lora_alpha:g}"
            )

    def train_all(self) -> None:
        """See `PipelineBackbone.train_all`."""
        self.pipeline.unet.float().requires_grad_(True)
        self._initial = {n: p.detach().clone() for n, p in self.pipeline.unet.named_parameters()}

    def checkpoint_activations(self) -> None:
        """See `PipelineBackbone.checkpoint_activations`."""
        self.pipeline.unet.enable_gradient_checkpointing()

    def compile(self, undo: bool = False) -> None:
        """See `PipelineBackbone.compile`."""
        # The blocks of a class share code but not sizes: one variant for each, where dynamo stops at eight.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for module in self.pipeline.unet.modules():
            if type(module).__name__ in REPEATED:
                if undo:
                    module._compiled_call_impl = None
                else:
                    module.compile(dynamic=True)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """See `Backbone.trainable_parameters`."""
        return {n: p for n, p in self.pipeline.unet.named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """See `Backbone.reference`."""
        if self._initial is None:
            if self._lora_config is None:
                yield
                return
            self.pipeline.unet.disable_adapters()
            try:
                yield
            finally:
                self.pipeline.unet.enable_adapters()
            return
        parameters = dict(self.pipeline.unet.named_parameters())
        trained = {n: p.data for n, p in parameters.items()}
        for name, parameter in parameters.items():
            parameter.data = self._initial[name]
        try:
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = trained[name]

    # -- out -------------------------------------------------------------------------------------------

    def save(self, run_dir: Path) -> Path:
        """See `PipelineBackbone.save`: `lora/pytorch_lora_weights.safetensors`, or a whole pipeline in `model/`."""
        if self._lora_config is None:
            self.pipeline.save_pretrained(run_dir / "model", safe_serialization=True)
            open_to_others(run_dir / "model")
            return run_dir / "model"
        state = {n: p.detach().cpu().contiguous() for n, p in get_peft_model_state_dict(self.pipeline.unet).items()}
        metadata = self._lora_config.to_dict()
        metadata["target_modules"] = sorted(metadata["target_modules"])  # a set: its order would differ between runs
        StableDiffusionPipeline.save_lora_weights(
            run_dir / "lora",
            unet_lora_layers=state,
            unet_lora_adapter_metadata=metadata,
            safe_serialization=True,
        )
        open_to_others(run_dir / "lora")
        return run_dir / "lora"

    def load_lora(self, path: Path) -> None:
        """See `PipelineBackbone.load_lora`."""
        if not path.exists():
            raise UserError(f"there is no LoRA file or folder {path}")
        try:
            self.pipeline.load_lora_weights(str(path), adapter_name=ADAPTER, use_safetensors=True)
        except Exception as error:  # a damaged file, other shapes, no LoRA at all: one message
            reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__
            raise UserError(f"the LoRA {path} cannot be loaded onto this model: {reason}") from error

    def generate(
        self, prompts: Sequence[str], num_steps: int, seeds: Sequence[int], guidance_scale: float
    ) -> list[Any]:
        """See `PipelineBackbone.generate`; image i has the generator `torch.Generator().manual_seed(seeds[i])`."""
        _, height, width = self.latent_shape
        factor = self.pipeline.vae_scale_factor
        images: list[Any] = []
        for prompt, seed in zip(prompts, seeds, strict=True):  # one by one: an image never depends on its neighbours
            images += self.pipeline(
                prompt,
                num_inference_steps=num_steps,
                guidance_scale=guidance_scale,
                generator=torch.Generator().manual_seed(seed),
                height=height * factor,
                width=width * factor,
            ).images
        return images
