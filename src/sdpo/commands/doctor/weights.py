"""The check of the network's weights: which are trained, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from sdpo.assembly import Parts
from sdpo.assembly.model import DTYPES
from sdpo.backbones import PipelineBackbone
from sdpo.commands.doctor.finding import Finding


def check_precision(parts: Parts) -> Iterator[Finding]:
    """Check that something is trained, in float32, and that the network computes in the precision asked for."""
    backbone, wanted, used = parts.backbone, parts.config.model.dtype, parts.policy.dtype
    trained, device = backbone.trainable_parameters(), backbone.device
    wrong = [name for name, p in trained.items() if p.dtype != torch.float32]
    total = sum(p.numel() for p in backbone.network_module.parameters())
    text = (
        f"{trained_parameters(parts):,} of {total:,} parameters of the network are trained, in float32; it computes in "
        f"{used} on {device}"
    )
    if not trained:
        yield Finding("precision", "FAIL", "nothing is trained: change lora.targets")
    elif wrong:
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        yield Finding("precision", "FAIL", f"{wrong[0]}{others} not in float32: load the model in another model.dtype")
    elif wanted is not None and used != DTYPES[wanted]:
        yield Finding("precision", "WARN", f"{text}: {wanted} is for GPUs. A run on a GPU will differ in rounding")
    elif used == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        yield Finding("precision", "WARN", f"{text}, which this GPU only emulates: use model.dtype=float16")
    else:
        yield Finding("precision", "ok", text)


def trained_parameters(parts: Parts) -> int:
    """The number of trained parameters."""
    return sum(p.numel() for p in parts.backbone.trainable_parameters().values())


def weight_bytes(backbone: PipelineBackbone) -> int:
    """The bytes of the weights of all parts of the pipeline."""
    found = {id(p): p for module in modules(backbone) for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in found.values())


def modules(backbone: PipelineBackbone) -> list[nn.Module]:
    """The network, and the pipeline's other modules."""
    return [
        backbone.network_module,
        *(part for part in backbone.pipeline.components.values() if isinstance(part, nn.Module)),
    ]
