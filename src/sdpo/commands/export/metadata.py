"""The metadata of an exported LoRA: ModelSpec 1.0.1, the keys of sd-scripts, and the run's own settings."""

from __future__ import annotations

from datetime import datetime

from sdpo import __version__
from sdpo.backbones.model_family import ModelFamily
from sdpo.commands.export.pictures import Picture
from sdpo.commands.model_card import Exported
from sdpo.config import Config


def lora_metadata(
    config: Config, exported: Exported, name: str, family: ModelFamily, written: datetime, picture: Picture | None
) -> dict[str, str]:
    """Return the entries of a LoRA file's header.

    AUTOMATIC1111 and Forge decide by `ss_base_model_version`, `ss_v2`, `modelspec.architecture` and
    `modelspec.implementation` for which base models they list a LoRA; they call it `ss_output_name` in prompts.

    Args:
        config: the run's configuration, which has a LoRA.
        exported: what the export's model card describes.
        name: the LoRA's name, which is unique among a user's exports.
        family: the family of the base model.
        written: when the run wrote the weights. The time of the export would make equal exports differ.
        picture: an image of the tuned model, or None.
    """
    assert config.lora is not None
    height, width = exported.size
    thumbnail = {"modelspec.thumbnail": picture.thumbnail} if picture else {}
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.architecture}/lora",
        "modelspec.implementation": family.implementation,
        "modelspec.title": name,
        "modelspec.description": describe(config, exported),
        "modelspec.date": written.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.usage_hint": usage_hint(exported),
        **thumbnail,
        "ss_base_model_version": family.base_version,
        "ss_v2": str(family.webui == "SD2"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.lora.rank),
        "ss_network_alpha": f"{config.lora.alpha:g}",
        "ss_output_name": name,
        "sdpo.version": __version__,
        "sdpo.reward": _rewards(config),
        "sdpo.algorithm": config.algorithm["name"],
        "sdpo.steps": str(config.sample.num_steps),
        "sdpo.epoch": str(exported.epoch),
    }


def describe(config: Config, exported: Exported) -> str:
    """Return a sentence that says what a LoRA is."""
    return (
        f"{config.model.path} aligned with the reward {_rewards(config)} by sdpo (algorithm "
        f"{config.algorithm['name']}, {config.sample.num_steps} sampling steps, epoch {exported.epoch})."
    )


def usage_hint(exported: Exported) -> str:
    """Return the settings that a LoRA is used with, in one line."""
    return (
        f"No trigger word. Steps {exported.steps}, guidance {exported.guidance_scale:g}, sampler {exported.sampler}, "
        "strength 1."
    )


def _rewards(config: Config) -> str:
    """Return the names of the rewards, with their weights where they are not 1."""
    return ", ".join(name if weight == 1 else f"{weight:g} * {name}" for name, weight in config.rewards.items())
