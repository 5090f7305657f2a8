"""The weights of an export: which of a run's weights they are, and in which form they are written."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch

from sdpo.assembly.model import DTYPES, load_model, load_tuned, make_trainable
from sdpo.backbones import PipelineBackbone
from sdpo.config import Config
from sdpo.config.sections import NO_IMPORTS
from sdpo.errors import UserError
from sdpo.run.checkpoint import Checkpoint, CheckpointStore
from sdpo.run.directory import RunDirectory
from sdpo.run.result import read_result, result_folder, result_record

Format = Literal["diffusers", "comfyui", "merged"]
"""The form of an export."""

Kind = Literal["ema", "raw"]
"""The moving average of the weights, or the trained weights themselves."""

DataType = Literal["float32", "bfloat16", "float16"]
"""The data type of merged weights."""

_LORA_FILE = "pytorch_lora_weights.safetensors"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ChosenWeights:
    """The weights of a run that are exported.

    Attributes:
        epoch: the epoch after which they were taken.
        checkpoint: the checkpoint that holds them; None stands for the run's own result.
        averaged: whether they are the moving average.
        words: what the card calls them.
        written: when the run wrote them, in UTC, to the second.
    """

    epoch: int
    checkpoint: Checkpoint | None
    averaged: bool
    words: str
    written: datetime


@dataclass(frozen=True)
class WrittenModel:
    """A model whose weights have been written.

    Attributes:
        backbone: the model.
        lora_name: a name for the LoRA that no other export of the user has.
        lora_file: the name of the LoRA's file; None where a whole pipeline was written.
        dtype: data type of the merged weights; None where nothing was merged or converted.
        rounding: the relative L2 distance between the merged weights' change and the LoRA's; None where no LoRA was
            merged.
    """

    backbone: PipelineBackbone
    lora_name: str
    lora_file: str | None
    dtype: DataType | None = None
    rounding: float | None = None


def choose_weights(run: RunDirectory, config: Config, kind: Kind | None, epoch: int | None) -> ChosenWeights:
    """Choose the weights of an export: the run's result where it has the right ones, else a checkpoint.

    Args:
        run: the run's directory.
        config: the run's configuration.
        kind: the average or the trained weights; None takes the average where the run has one.
        epoch: the epoch of a checkpoint; None takes the result, or the newest checkpoint before there is a result.

    Raises:
        UserError: if the run has no such weights.
    """
    averages = config.train.ema_decay is not None
    if kind == "ema" and not averages:
        raise UserError("--weights ema: this run keeps no average (train.ema_decay is null); use --weights raw")
    averaged = averages and kind != "raw"
    result = read_result(run, config)
    if result is not None and epoch is None:
        if averaged == result.averaged:
            written = _time(result_record(result_folder(run, config)))
            return ChosenWeights(result.epoch, None, averaged, _words(result.epoch, averaged, averages), written)
        epoch = result.epoch
    checkpoint = _load_checkpoint(run, epoch)
    words = _words(checkpoint.epoch, averaged, averages)
    return ChosenWeights(checkpoint.epoch, checkpoint, averaged, words, _time(run.checkpoints / str(checkpoint.epoch)))


def _time(path: Path) -> datetime:
    """The time of a file's or a folder's last change."""
    return datetime.fromtimestamp(int(path.stat().st_mtime), UTC)


def _load_checkpoint(run: RunDirectory, epoch: int | None) -> Checkpoint:
    """Load the checkpoint of an epoch, or the newest one.

    Raises:
        UserError: if there is no such checkpoint.
    """
    store = CheckpointStore(run.checkpoints)
    kept = store.epochs()
    if not kept or (epoch is not None and epoch not in kept):
        there = f"the run keeps those of epoch {', '.join(map(str, kept))}" if kept else "the run keeps none"
        wanted = "a checkpoint" if epoch is None else f"the checkpoint of epoch {epoch}"
        raise UserError(
            f"{run.path}: the export needs {wanted}, but {there}; checkpoint.keep_last and checkpoint.every set which "
            "checkpoints a run keeps"
        )
    return store.load(kept[-1] if epoch is None else epoch)


def _words(epoch: int, averaged: bool, averages: bool) -> str:
    kind = "the moving average" if averaged else "raw," if averages else "those"
    return f"{kind} after epoch {epoch}"


@torch.no_grad()
def write_weights(
    run: RunDirectory, config: Config, chosen: ChosenWeights, to: Format, place: Path, dtype: DataType | None = None
) -> WrittenModel:
    """Write the chosen weights into a folder.

    Args:
        run: the run's directory.
        config: the run's configuration.
        chosen: the weights.
        to: the form in which they are written.
        place: the folder, which exists and is empty.
        dtype: data type of merged weights; None takes the model's for a LoRA, and leaves all trained weights as the
            run has them.

    Raises:
        UserError: if the model cannot be loaded, or ComfyUI reads no LoRA of this model.
    """
    name = _lora_name(run, config, chosen)
    with tempfile.TemporaryDirectory() as scratch:
        if chosen.checkpoint is None:
            backbone, saved = load_tuned(config, run, _CPU), result_folder(run, config)
        else:
            backbone = _load_checkpointed(config, chosen.checkpoint, chosen.averaged)
            saved = backbone.save(Path(scratch))
        if to == "merged" and (config.lora is not None or dtype is not None):
            dtype = dtype or config.model.dtype or "float32"
            difference = backbone.save_merged(place, DTYPES[dtype])
            return WrittenModel(backbone, name, None, dtype, None if config.lora is None else difference)
        if to == "comfyui":
            file = f"{name}.safetensors"
            backbone.save_comfyui(saved / _LORA_FILE, place / file)
            return WrittenModel(backbone, name, file)
        record = result_record(saved).name
        shutil.copytree(saved, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(record))
    return WrittenModel(backbone, name, _LORA_FILE if to == "diffusers" and config.lora is not None else None)


def _lora_name(run: RunDirectory, config: Config, chosen: ChosenWeights) -> str:
    """The run's name, the rewards' and the epoch, in characters that all file systems and prompts accept."""
    raw = "-raw" if config.train.ema_decay is not None and not chosen.averaged else ""
    return re.sub(r"[^\w.-]+", "_", f"{run.name}-{'-'.join(config.rewards)}-e{chosen.epoch}{raw}")


def _load_checkpointed(config: Config, checkpoint: Checkpoint, averaged: bool) -> PipelineBackbone:
    """Load the base model with the trained weights of a checkpoint, without quantisation."""
    data = config.model_dump(mode="json")
    data["model"]["quantize"] = None
    whole = Config.parse(data, NO_IMPORTS)
    backbone = load_model(whole, _CPU)
    make_trainable(backbone, whole, backbone.device)
    values = checkpoint.ema if averaged else checkpoint.weights
    for key, parameter in backbone.trainable_parameters().items():
        parameter.copy_(values[key])
    return backbone
