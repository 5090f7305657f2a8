"""The labels of an exported LoRA for other programs: the header of its file, and the files that lie beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sdpo.backbones.model_family import ModelFamily
from sdpo.commands.export.header import add_metadata
from sdpo.commands.export.metadata import describe, lora_metadata, usage_hint
from sdpo.commands.export.pictures import Picture
from sdpo.commands.export.weights import ChosenWeights, WrittenModel
from sdpo.commands.export.workflow import workflow
from sdpo.commands.model_card import Exported
from sdpo.config import Config


def label_lora(
    file: Path,
    config: Config,
    chosen: ChosenWeights,
    written: WrittenModel,
    exported: Exported,
    picture: Picture | None,
) -> Exported:
    """Write a LoRA's metadata, and beside a file for ComfyUI its preview, its settings and a workflow.

    Args:
        file: the LoRA's file, which has no metadata of these names yet.
        config: the run's configuration.
        chosen: the weights in the file.
        written: the model that they belong to.
        exported: what the export's model card describes.
        picture: an image of the tuned model, or None.

    Returns:
        What the card describes, with the files beside the LoRA.
    """
    family = written.backbone.family
    add_metadata(file, lora_metadata(config, exported, written.lora_name, family, chosen.written, picture))
    if not exported.for_comfyui:
        return exported
    if picture is not None:
        picture.save(_beside(file, ".png"))
    _write_json(_beside(file, ".json"), _webui_settings(family, describe(config, exported), usage_hint(exported)))
    graph, target = workflow(written.backbone, config, exported), _beside(file, ".workflow.json")
    if graph is not None:
        _write_json(target, graph)
    return dataclasses.replace(
        exported, for_webui=family.webui != "Unknown", workflow=None if graph is None else target.name
    )


def _webui_settings(family: ModelFamily, description: str, notes: str) -> dict[str, Any]:
    """The settings of a LoRA as the web pages of AUTOMATIC1111 and Forge save them in a file of its name."""
    return {
        "description": description,
        "sd version": family.webui,
        "activation text": "",
        "preferred weight": 1.0,
        "negative text": "",
        "notes": notes,
    }


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(file.name.removesuffix(".safetensors") + ending)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
