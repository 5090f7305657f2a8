"""The denoising network of a diffusers pipeline: which of its weights are trained, and where they lie."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sdpo.backbones import lora
from sdpo.backbones.base import Backbone
from sdpo.backbones.quantize import quantize
from sdpo.backbones.weights import NetworkWeights, WholeWeights
from sdpo.system.loaded_weights import raw_bytes


class TrainableBackbone(Backbone):
    """A backbone whose network is a component of a diffusers pipeline.

    Args:
        pipeline: a diffusers pipeline that has the class's component.

    Attributes:
        pipeline: the pipeline.
        component: name of the pipeline's denoising network, `unet` or `transformer`.
        text_encoders: names of the pipeline's text encoders; a model may lack some of them.
        lora_targets: suffixes of the modules that get a LoRA where the user names none.
        repeated_blocks: class names of the blocks that torch compiles and FSDP2 shards one by one; empty: the classes
            that the network itself lists.
    """

    component: ClassVar[str] = "transformer"
    text_encoders: ClassVar[Sequence[str]] = ("text_encoder",)
    lora_targets: ClassVar[Sequence[str]] = ("to_q", "to_k", "to_v", "to_out.0")
    repeated_blocks: ClassVar[Sequence[str]] = ()

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.network_module: nn.Module = getattr(pipeline, self.component)
        self._weights: NetworkWeights = WholeWeights(self.network_module)
        self._is_base = False
        self._start: dict[str, Tensor] | None = None

    def text_modules(self) -> list[nn.Module]:
        """The text encoders that the pipeline has, without those that were freed."""
        found = (getattr(self.pipeline, name, None) for name in self.text_encoders)
        return [module for module in found if module is not None]

    # -- what is trained -------------------------------------------------------------------------------------

    def quantize(self, how: Literal["int8", "nf4"], device: torch.device) -> None:
        """Quantise the network's frozen weights, and move the pipeline to its device; call it before the LoRA is added.

        Args:
            how: the number of bits, as in `backbones.quantize.quantize`.
            device: the device to compute on. Where the pipeline lies on the CPU before, its full network never does.

        Raises:
            UserError: if the library that quantises is not installed.
        """
        quantize(self.network_module, how, device)
        self._move(device)

    def train_lora(self, rank: int, alpha: float, targets: Sequence[str] | None, path: str | None = None) -> None:
        """Add a LoRA to the network and train its weights alone.

        Args:
            rank: rank of the LoRA.
            alpha: α of the LoRA, whose product is scaled by α / rank.
            targets: suffixes of the modules that get a LoRA; None stands for `lora_targets`.
            path: a LoRA file or folder to start from, with this rank and α; the modules that it names are trained.

        Raises:
            UserError: if no module has one of the suffixes, or the LoRA at `path` cannot be trained further.
        """
        if path is None:
            lora.add(self.network_module, rank, alpha, targets or self.lora_targets)
        else:
            lora.load(self.pipeline, path, setting="lora.path: ")
            lora.check_trainable(self.network_module, self.text_modules(), path, rank, alpha)
        lora.make_trainable(self.network_module)

    def refer_to_start(self) -> None:
        """Let `reference` give the network its present weights, those of the LoRA that training starts from."""
        parameters = self.trainable_parameters().items()
        self._start = {name: parameter.detach().clone() for name, parameter in parameters}

    def start_digest(self) -> str | None:
        """A hash of the weights that `refer_to_start` kept; None where it was not called."""
        if self._start is None:
            return None
        digest = hashlib.blake2b(digest_size=16)
        for name, weight in sorted(self._start.items()):
            digest.update(name.encode())
            digest.update(raw_bytes(weight))
        return digest.hexdigest()

    def train_all(self, copy: bool = True) -> None:
        """Train every weight of the network, in float32.

        Args:
            copy: whether to copy the present weights for `reference`. A network that is sharded afterwards needs no
                copy, because its sharded layout keeps one.
        """
        self.network_module.float().requires_grad_(True)
        self._weights = WholeWeights(self.network_module, keep_initial=copy)

    def attach_sharded(self, weights: NetworkWeights, device: torch.device) -> None:
        """Adopt the sharded layout of the network, and move the pipeline's other modules to this rank's device."""
        self._move(device, network=False)
        self._weights = weights

    def _move(self, device: torch.device, network: bool = True) -> None:
        """Move the modules of the pipeline to a device, the network only where `network` is set."""
        for module in self.pipeline.components.values():
            if isinstance(module, nn.Module) and (network or module is not self.network_module):
                module.to(device)
        self.device = device

    @property
    def is_sharded(self) -> bool:
        """Whether the network's weights are sharded over ranks."""
        return self._weights.is_sharded

    @property
    def has_lora(self) -> bool:
        """Whether the network has a LoRA, trained or loaded."""
        return lora.attached(self.network_module)

    def lora_strength(self, strength: float) -> contextlib.AbstractContextManager[None]:
        """A context in which the LoRA's change of the network is multiplied by `strength`; 1 changes nothing.

        Args:
            strength: the factor; a LoRA that was merged into the weights is not scaled.
        """
        return lora.scaled(self.network_module, strength)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The network's parameters that require a gradient, by name."""
        return {n: p for n, p in self.network_module.named_parameters() if p.requires_grad}

    def idle_parameters(self) -> set[str]:
        """Names of trainable parameters whose gradient is 0 for every sample at the present weights."""
        return lora.idle_parameters(self.network_module) & self.trainable_parameters().keys()

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        """Switch the LoRA off, or swap the initial weights in, until the outermost such context ends."""
        if self._is_base:
            yield
            return
        self._is_base = True
        try:
            with self._weights.initial() if not self.has_lora else lora.without(self.network_module):
                yield
        finally:
            self._is_base = False

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """The base model, or after `refer_to_start` the model that training starts from."""
        if self._start is None or self._is_base:
            with self.base():
                yield
            return
        parameters = self.trainable_parameters()
        trained = {name: parameter.data for name, parameter in parameters.items()}
        for name, start in self._start.items():
            parameters[name].data = start
        try:
            yield
        finally:
            for name, weights in trained.items():
                parameters[name].data = weights

    # -- how the network is computed -------------------------------------------------------------------------

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass instead of storing them: less memory, a third more time."""
        network: Any = self.network_module
        network.enable_gradient_checkpointing()

    def block_classes(self) -> Sequence[str]:
        """Class names of the blocks that the network repeats; empty where neither family nor network names any."""
        return self.repeated_blocks or getattr(self.network_module, "_repeated_blocks", None) or ()

    def compile(self, undo: bool = False) -> None:
        """Let torch compile the network's repeated blocks, one compiled variant for each block size.

        This sets `torch._dynamo.config.recompile_limit` to at least 64 for the whole process: the blocks of one class
        share their code but not their sizes, and dynamo's default stops after eight variants.

        Args:
            undo: whether to return to the blocks' uncompiled code instead.
        """
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        blocks = self.block_classes()
        for module in self.network_module.modules():
            if type(module).__name__ in blocks:
                if undo:
                    module._compiled_call_impl = None
                else:
                    module.compile(dynamic=True)
