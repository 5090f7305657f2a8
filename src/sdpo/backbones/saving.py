"""Loading and saving of trained weights: LoRA files, whole pipelines, files for ComfyUI."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdpo.backbones import lora, merging
from sdpo.backbones.lora_files import locate
from sdpo.backbones.model_family import ModelFamily, model_family
from sdpo.backbones.training import TrainableBackbone


class SavableBackbone(TrainableBackbone):
    """A backbone that writes its weights in the formats of other programs."""

    _lora_path: Path | None = None  # of a LoRA that was loaded for sampling, in the network's data type

    @property
    def family(self) -> ModelFamily:
        """The names by which other programs know the base model."""
        return model_family(self.pipeline)

    def load_lora(self, path: Path) -> None:
        """Load a trained LoRA for sampling, by diffusers' own loader.

        Raises:
            UserError: if there is no such file or folder, or its LoRA does not fit this model.
        """
        lora.load(self.pipeline, path)
        self._lora_path = path

    def save(self, parent: Path, weights: Mapping[str, Tensor] | None = None) -> Path:
        """Write the trained weights for use elsewhere: a LoRA to `lora/`, all weights as a pipeline to `model/`.

        Args:
            parent: the folder that gets the new folder `lora/` or `model/`.
            weights: the complete trained weights by name, where the network is sharded and has no LoRA.

        Returns:
            The folder that was written.
        """
        if self.has_lora:
            folder = parent / "lora"
            lora.save(self.pipeline, self.component, folder)
        else:
            folder = parent / "model"
            with self._whole_network(weights or {}):
                self.pipeline.save_pretrained(folder, safe_serialization=True)
        _open_to_others(folder)
        return folder

    @contextlib.contextmanager
    def _whole_network(self, gathered: Mapping[str, Tensor]) -> Iterator[None]:
        """A context in which the pipeline's network has complete weights."""
        whole = self._weights.whole(gathered)
        if whole is self.network_module:
            yield
            return
        setattr(self.pipeline, self.component, whole)
        try:
            yield
        finally:
            setattr(self.pipeline, self.component, self.network_module)

    def save_comfyui(self, lora_file: Path, target: Path) -> None:
        """Write the network's LoRA under the names that ComfyUI reads.

        Args:
            lora_file: the same LoRA's file as diffusers wrote it.
            target: the .safetensors file to write.

        Raises:
            UserError: if ComfyUI reads no LoRA of this model.
        """
        from sdpo.backbones.comfyui import comfyui_weights

        found = comfyui_weights(self.pipeline, self.component, load_file(lora_file))
        save_file({n: w.contiguous() for n, w in found.items()}, target, metadata={"format": "pt"})
        _open_to_others(target.parent)

    def save_merged(self, folder: Path, dtype: torch.dtype) -> float:
        """Merge the network's LoRA, if it has one, into its weights, and write the whole pipeline.

        Args:
            folder: the folder to create.
            dtype: data type of all weights that are written.

        Returns:
            The relative difference between the LoRA and what rounding to the data type leaves of it, as
            `merging.merge` measures it: 0 in float32, and for instance 0.01 in float16 or 0.5 in bfloat16.
        """
        difference = 0.0
        if self.has_lora:
            if self._lora_path is not None:
                weights = load_file(locate(self._lora_path))
                merging.restore(self.network_module, self.component, lora.ADAPTER, weights)
            difference = merging.merge(self.network_module, dtype)
            self.pipeline.unload_lora_weights()
        self.pipeline.to(dtype=dtype).save_pretrained(folder, safe_serialization=True)
        _open_to_others(folder)
        return difference


def _open_to_others(folder: Path) -> None:
    """Give files the permissions that the user's umask allows; safetensors makes them readable by their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
