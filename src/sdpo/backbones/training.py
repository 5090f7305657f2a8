"""What of a pipeline's network is trained, and how weights come in and go out: the same for all families."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdpo.backbones import lora
from sdpo.backbones.base import Backbone
from sdpo.backbones.quantize import quantize
from sdpo.errors import UserError

if TYPE_CHECKING:
    from sdpo.distributed.fsdp2 import Spread  # torch has it on some platforms only


class TrainableBackbone(Backbone):
    """A backbone whose network is a component of a diffusers pipeline.

    Attributes:
        pipeline: it.
        component: which of its components is the denoising network, `unet` or `transformer`.
        text_encoders: its text encoders; a model may lack some.
        lora_targets: suffixes of the modules that a LoRA is put on unless the user names others.
        repeated_blocks: classes that torch.compile takes, one by one; empty: those that the network names itself.
        spread: the network as processes share it, where they do.
    """

    component: ClassVar[str] = "transformer"
    text_encoders: ClassVar[Sequence[str]] = ("text_encoder",)
    lora_targets: ClassVar[Sequence[str]] = ("to_q", "to_k", "to_v", "to_out.0")
    repeated_blocks: ClassVar[Sequence[str]] = ()

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.network_module: nn.Module = getattr(pipeline, self.component)
        self._initial: dict[str, Tensor] | None = None  # a copy of the base weights when all are trained
        self.spread: Spread | None = None

    def text_modules(self) -> list[nn.Module]:
        """The text encoders that there are."""
        found = (getattr(self.pipeline, name, None) for name in self.text_encoders)
        return [module for module in found if module is not None]

    def quantize(self, how: Literal["int8", "nf4"]) -> None:
        """Keep the network's frozen weights in few bits; before its LoRA is made.

        Raises:
            UserError: if the library for it is not installed.
        """
        quantize(self.network_module, how)

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
            lora.check_continued(self.network_module, self.text_modules(), path, rank, alpha)
        lora.make_trainable(self.network_module)

    def train_all(self, copy: bool = True) -> None:
        """Train every weight of the network, in float32; `copy` the base's for `reference`, unless `Spread` does."""
        self.network_module.float().requires_grad_(True)
        if copy:
            self._initial = {n: p.detach().clone() for n, p in self.network_module.named_parameters()}

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """See `Backbone.trainable_parameters`."""
        return {n: p for n, p in self.network_module.named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """See `Backbone.reference`."""
        network: Any = self.network_module
        if self.spread is not None and not self.has_lora:
            with self.spread.reference():
                yield
        elif self._initial is not None:
            trained = {n: p.data for n, p in network.named_parameters()}
            self._set(self._initial)
            try:
                yield
            finally:
                self._set(trained)
        elif self.has_lora:
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
    def has_lora(self) -> bool:
        """Whether a LoRA is on the network."""
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

    def load_lora(self, path: Path) -> None:
        """Attach a finished LoRA for sampling, by diffusers' own loader.

        Raises:
            UserError: if it is none of this model's.
        """
        if not path.exists():
            raise UserError(f"there is no LoRA file or folder {path}")
        lora.load(self.pipeline, path)

    def save(self, run_dir: Path, weights: Mapping[str, Tensor] | None = None) -> Path:
        """Write the trained weights for use elsewhere, `lora/` or a whole pipeline in `model/`; returns the folder.

        Where all weights are trained and split, `weights` are the gathered ones.
        """
        if self.has_lora:
            folder = run_dir / "lora"
            lora.save(self.pipeline, self.component, folder)
        else:
            folder = run_dir / "model"
            whole = self.spread.whole(self.pipeline, self.component, weights or {}) if self.spread else None
            with whole or contextlib.nullcontext():
                self.pipeline.save_pretrained(folder, safe_serialization=True)
        _open_to_others(folder)
        return folder

    def save_comfyui(self, lora_file: Path, target: Path) -> None:
        """Write the LoRA that is attached once more, under the names that ComfyUI reads.

        Args:
            lora_file: its weights as diffusers wrote them.
            target: a .safetensors file.

        Raises:
            UserError: if ComfyUI knows no LoRA of this model.
        """
        from sdpo.backbones.comfyui import comfyui_weights

        found = comfyui_weights(self.pipeline, self.component, load_file(lora_file))
        save_file({n: w.contiguous() for n, w in found.items()}, target, metadata={"format": "pt"})
        _open_to_others(target.parent)

    def save_merged(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the whole pipeline with the LoRA that is attached, if any, in its weights; they change.

        Args:
            folder: new.
            dtype: of all weights that are written.
        """
        if self.has_lora:
            lora.merge(self.pipeline)
        self.pipeline.to(dtype=dtype).save_pretrained(folder, safe_serialization=True)
        _open_to_others(folder)


def _open_to_others(folder: Path) -> None:
    """Give files the permissions that the user's umask allows; safetensors makes them readable by their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
