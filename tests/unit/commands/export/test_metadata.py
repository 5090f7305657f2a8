"""The header of an exported LoRA: it names the family of the base model, and equal exports have equal headers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.webuis import a1111, forge, header
from PIL import Image
from safetensors.torch import load_file, save_file

from sdpo.backbones.load import FAMILIES
from sdpo.backbones.model_family import ModelFamily, model_family
from sdpo.commands.export.header import add_metadata
from sdpo.commands.export.metadata import lora_metadata
from sdpo.commands.export.pictures import Picture
from sdpo.commands.model_card import Exported
from sdpo.config import Config

EXPORTED = Exported(
    "run", "out", "run.safetensors", "those after epoch 2", True, 2, "a cat", 4, "DDIMScheduler", 1.5,
    {"height": 512, "width": 768},
)  # fmt: skip
WRITTEN = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


class Settings(dict[str, Any]):
    """A config whose entries are also attributes, as in diffusers."""

    __getattr__ = dict.__getitem__


def pipeline(name: str, prediction: str = "epsilon", **network: Any) -> Any:
    """A pipeline of that class with a config and nothing else."""
    part = SimpleNamespace(config=Settings(network))
    scheduler = SimpleNamespace(config=Settings(prediction_type=prediction))
    return type(name, (), {"unet": part, "transformer": part, "scheduler": scheduler})()


def sd(width: int, prediction: str = "epsilon") -> Any:
    return pipeline("StableDiffusionPipeline", prediction, cross_attention_dim=width)


def sd3(norm: str | None, dual: tuple[int, ...]) -> Any:
    return pipeline("StableDiffusion3Pipeline", qk_norm=norm, dual_attention_layers=dual)


def transformer(name: str, heads: int, width: int) -> Any:
    return pipeline(name, num_attention_heads=heads, attention_head_dim=width)


RELEASED = {
    "SD 1.5": (sd(768), "stable-diffusion-v1", "SD1", "SD1"),
    "SD 2.1 base": (sd(1024), "stable-diffusion-v2-512", "SD2", "SD2"),
    "SD-Turbo": (sd(1024), "stable-diffusion-v2-512", "SD2", "SD2"),
    "SD 2.1": (sd(1024, "v_prediction"), "stable-diffusion-v2-768-v", "SD2", "SD2"),
    "LCM": (
        pipeline("LatentConsistencyModelPipeline", cross_attention_dim=768), "stable-diffusion-v1", "SD1", "SD1",
    ),
    "SDXL": (pipeline("StableDiffusionXLPipeline"), "stable-diffusion-xl-v1-base", "SDXL", "SDXL"),
    "SD 3 medium": (sd3(None, ()), "stable-diffusion-v3-medium", "Unknown", "Unknown"),
    "SD 3.5 medium": (sd3("rms_norm", tuple(range(13))), "stable-diffusion-v3.5-medium", "Unknown", "Unknown"),
    "SD 3.5 large": (sd3("rms_norm", ()), "stable-diffusion-v3.5-large", "Unknown", "Unknown"),
    "FLUX.1-schnell": (pipeline("FluxPipeline", guidance_embeds=False), "flux-1-schnell", None, "Flux"),
    "FLUX.1-dev": (pipeline("FluxPipeline", guidance_embeds=True), "flux-1-dev", None, "Flux"),
    "FLUX.2-klein 4B": (transformer("Flux2KleinPipeline", 24, 128), "Flux.2-klein-4b", "Unknown", "Unknown"),
    "FLUX.2-klein 9B": (transformer("Flux2KleinPipeline", 32, 128), "Flux.2-klein-9b", "Unknown", "Unknown"),
    "Z-Image": (pipeline("ZImagePipeline"), "z-image", "Unknown", "Unknown"),
    "SANA-Sprint 0.6B": (transformer("SanaSprintPipeline", 36, 32), "nvidia-sana-600", "Unknown", "Unknown"),
    "SANA-Sprint 1.6B": (transformer("SanaSprintPipeline", 70, 32), "nvidia-sana-1600", "Unknown", "Unknown"),
}  # fmt: skip
"""By model: its pipeline, its architecture, and the lists in which AUTOMATIC1111 and Forge have to show its LoRA.

AUTOMATIC1111 takes FLUX.1 for SD 1, because it does not know FLUX.1's name and any header stands for SD 1.
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lora.safetensors"
    weights = {"b.lora_A.weight": torch.arange(6.0).reshape(2, 3), "a.lora_A.weight": torch.ones(3, dtype=torch.half)}
    save_file(weights, path, metadata={"format": "pt", "lora_adapter_metadata": "{}"})
    return path


def written(family: ModelFamily, picture: Picture | None = None, **changes: Any) -> dict[str, str]:
    config = Config.load("emoji", overrides=None, **{"lora": {"rank": 8, "alpha": 16}} | changes)
    return lora_metadata(config, EXPORTED, "run-emoji_score-e2", family, WRITTEN, picture)


@pytest.mark.parametrize("model", RELEASED)
def test_the_header_names_the_family(file: Path, model: str) -> None:
    released, architecture, in_a1111, in_forge = RELEASED[model]
    family = model_family(released)
    add_metadata(file, written(family))
    found, user = header(file), {"sd version": family.webui}
    assert found["modelspec.architecture"] == f"{architecture}/lora"
    assert a1111(found, user) == (in_a1111 or "SD1") and forge(found, user) == in_forge
    if in_a1111 in ("SD1", "SD2", "SDXL"):  # without the settings beside the file, too
        assert a1111(found) == forge(found) == in_a1111
    assert forge(found) == in_forge


def test_every_pipeline_class_has_a_family() -> None:
    assert {type(released).__name__ for released, *_ in RELEASED.values()} == FAMILIES.keys()


def test_the_entries_of_the_header(file: Path) -> None:
    family = model_family(sd(1024))
    picture = Picture("a cat", Image.new("RGB", (768, 768), "red"))
    add_metadata(file, written(family, picture, rewards={"emoji_score": 1.0, "colorfulness": 0.5}))
    found = header(file)
    thumbnail = found.pop("modelspec.thumbnail")
    assert thumbnail.startswith("data:image/jpeg;base64,/9j/") and len(thumbnail) < 30_000
    assert found.pop("modelspec.description").startswith("emoji aligned with the reward emoji_score, 0.5 * colorful")
    assert found.pop("sdpo.version")
    assert found == {
        "format": "pt",
        "lora_adapter_metadata": "{}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v2-512/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "run-emoji_score-e2",
        "modelspec.date": "2026-03-01T12:30:00Z",
        "modelspec.resolution": "768x512",
        "modelspec.usage_hint": "No trigger word. Steps 4, guidance 1.5, sampler DDIMScheduler, strength 1.",
        "ss_base_model_version": "sd_v2",
        "ss_v2": "True",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "16",
        "ss_output_name": "run-emoji_score-e2",
        "sdpo.reward": "emoji_score, 0.5 * colorfulness",
        "sdpo.algorithm": "sdpo",
        "sdpo.steps": "2",
        "sdpo.epoch": "2",
    }


def test_the_weights_stay_and_the_bytes_are_always_the_same(file: Path, tmp_path: Path) -> None:
    weights, entries = load_file(file), written(model_family(sd(768)))
    other = tmp_path / "other.safetensors"
    save_file(weights, other, metadata={"lora_adapter_metadata": "{}", "format": "pt"})
    for path, order in ((file, entries), (other, dict(reversed(entries.items())))):
        add_metadata(path, order)
    assert file.read_bytes() == other.read_bytes()
    assert all(torch.equal(load_file(file)[name], weights[name]) for name in weights)
    size = int.from_bytes(file.read_bytes()[:8], "little")
    names = list(json.loads(file.read_bytes()[8 : 8 + size])["__metadata__"])
    assert size % 8 == 0 and names == sorted(names)
