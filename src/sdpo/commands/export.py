"""`sdpo export`: a run's result in the form that other programs load, with a model card."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from sdpo.assembly import build
from sdpo.backbones import PipelineBackbone
from sdpo.commands.model_card import Exported, render_card
from sdpo.commands.target import load_tuned
from sdpo.config.schema import Config
from sdpo.errors import UserError
from sdpo.report.curves_png import draw_curves
from sdpo.report.reader import Run, read_run
from sdpo.report.samples_png import draw_samples
from sdpo.run.checkpoint import Checkpoint, CheckpointStore
from sdpo.run.result import RESULT, read_result
from sdpo.system.durable import recover_folder, replace_folder

Format = Literal["diffusers", "comfyui", "merged"]
Weights = Literal["ema", "raw"]
MARK = "sdpo_export.json"
LORA_FILE = "pytorch_lora_weights.safetensors"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Source:
    """Which weights of a run are meant.

    Attributes:
        epoch: after which they are.
        checkpoint: that holds them; None is the run's own result.
        averaged: whether they are the moving average.
        words: what the card calls them.
    """

    epoch: int
    checkpoint: Checkpoint | None
    averaged: bool
    words: str


def export(
    run_dir: Path,
    to: Format,
    weights: Weights | None = None,
    epoch: int | None = None,
    output: Path | None = None,
    repo: str | None = None,
) -> Path:
    """Write a run's weights for use elsewhere.

    Args:
        run_dir: of the run.
        to: `diffusers`: a LoRA folder, or the pipeline where all weights were trained; `comfyui`: a LoRA in one file
            under ComfyUI's names; `merged`: the whole pipeline, the LoRA in its weights.
        weights: the moving average or the trained ones; None is the average where the run has one.
        epoch: of a checkpoint; None is the run's result, or the newest checkpoint before there is one.
        output: a new folder, or one of an earlier export; None is `export/<to>` in the run's.
        repo: on the hub, to upload the folder to.

    Returns:
        The folder.

    Raises:
        UserError: if there are no such weights, the folder is somebody else's, or the upload fails.
    """
    run = read_run(run_dir)
    config = Config.of_run(run_dir / "config.yaml")
    if to == "comfyui" and config.lora is None:
        raise UserError("--to comfyui writes a LoRA, and this run trained all weights: use --to merged")
    if repo is not None:
        check_upload(repo)
    source = _choose(run, config, weights, epoch)
    folder = output or run_dir / "export" / to
    with _new_folder(folder) as place:
        backbone, weight_name = _write_weights(run_dir, config, source, to, place, (output or run_dir.resolve()).name)
        height, width = backbone.image_size
        steps = max((s for s in config.evaluate.steps if s <= 4), default=min(config.evaluate.steps))
        arguments = backbone.call_arguments(steps, config.sample.guidance_scale)
        exported = Exported(
            name=(repo or run.name).rsplit("/", 1)[-1],
            address=repo or str(folder),
            weight_name=weight_name,
            weights=source.words,
            as_evaluated=source.averaged == (config.train.ema_decay is not None),
            epoch=source.epoch,
            steps=steps,
            arguments={"height": height, "width": width, **arguments},
        )
        _write_card(run, config, exported, place)
    if repo is not None:
        _upload(folder, repo)
    return folder


def _choose(run: Run, config: Config, weights: Weights | None, epoch: int | None) -> Source:
    """The weights that are asked for.

    Raises:
        UserError: if the run has none such.
    """
    averages = config.train.ema_decay is not None
    if weights == "ema" and not averages:
        raise UserError("--weights ema: this run keeps no average (train.ema_decay is null); use --weights raw")
    averaged = averages and weights != "raw"
    result = read_result(run.path, config)
    if result is not None and epoch is None:
        if averaged == result.averaged:
            return Source(result.epoch, None, averaged, _words(result.epoch, averaged, averages))
        epoch = result.epoch
    store = CheckpointStore(run.path / "checkpoints")
    kept = store.epochs()
    if not kept or (epoch is not None and epoch not in kept):
        there = f"there are those of {', '.join(map(str, kept))}" if kept else "it has none"
        wanted = "needs a checkpoint" if epoch is None else f"epoch {epoch} needs its checkpoint"
        raise UserError(
            f"{run.path}: {wanted}, but {there}; checkpoint.keep_last and checkpoint.every say which are kept"
        )
    checkpoint = store.load(kept[-1] if epoch is None else epoch)
    return Source(checkpoint.epoch, checkpoint, averaged, _words(checkpoint.epoch, averaged, averages))


def _words(epoch: int, averaged: bool, averages: bool) -> str:
    kind = "the moving average" if averaged else "raw," if averages else "those"
    return f"{kind} after epoch {epoch}"


@torch.no_grad()
def _write_weights(
    run_dir: Path, config: Config, source: Source, to: Format, place: Path, name: str
) -> tuple[PipelineBackbone, str | None]:
    """Fill the folder; returns the model and the name of the LoRA's file, if it is one."""
    saved = run_dir / ("lora" if config.lora else "model")
    with tempfile.TemporaryDirectory() as scratch:
        if source.checkpoint is None:
            backbone = load_tuned(config, run_dir, CPU)
        else:
            backbone = build.build_backbone(config, CPU)
            whole = config.model.model_copy(update={"quantize": None})
            build.prepare_training(backbone, config.model_copy(update={"model": whole}))
            values = source.checkpoint.ema if source.averaged else source.checkpoint.weights
            for key, parameter in backbone.trainable_parameters().items():
                parameter.copy_(values[key])
            saved = backbone.save(Path(scratch))
        if to == "merged" and config.lora is not None:
            backbone.save_merged(place, build.DTYPES[config.model.dtype])
        elif to == "comfyui":
            backbone.save_comfyui(saved / LORA_FILE, place / f"{name}.safetensors")
            return backbone, f"{name}.safetensors"
        else:
            shutil.copytree(saved, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RESULT))
    return backbone, LORA_FILE if to == "diffusers" and config.lora is not None else None


def _write_card(run: Run, config: Config, exported: Exported, place: Path) -> None:
    run = dataclasses.replace(
        run,
        metrics=[r for r in run.metrics if int(r["epoch"]) <= exported.epoch],
        evaluations=[e for e in run.evaluations if e.epoch <= exported.epoch],
    )
    draw_curves(run, place / "curves.png")
    draw_samples(run, place / "samples.png")
    (place / "README.md").write_text(render_card(run, config, exported), encoding="utf-8")


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A place to write in; it becomes the folder when all is written, in place of an earlier export alone.

    Raises:
        UserError: if the folder holds anything that an export did not write, or cannot be made.
    """
    old = folder.with_name(f".{folder.name}.export-old")  # `<folder>.old` may be the user's
    try:
        recover_folder(folder, old)
        _check_free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".export-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"the export cannot be written to {folder}: {error}") from error
    place = aside / folder.name
    try:
        place.mkdir()
        yield place
        files = sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file())
        (place / MARK).write_text(json.dumps({"files": [*files, MARK]}, indent=1) + "\n", encoding="utf-8")
        replace_folder(place, folder, old)
    except OSError as error:
        raise UserError(f"the export cannot be written to {folder}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_free(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"-o {folder} is a file: name a new folder")
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    foreign = sorted(present - _written(folder / MARK))
    if foreign:
        raise UserError(
            f"-o {folder} holds {foreign[0]}, which is not of an earlier export: nothing was changed; name a new folder"
        )


def _written(mark: Path) -> set[str]:
    """The files that an earlier export says it wrote; none where the mark is missing or damaged."""
    try:
        return set(map(str, json.loads(mark.read_text(encoding="utf-8"))["files"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()


def check_upload(repo: str) -> None:
    """Refuse an upload that cannot succeed before any time is spent.

    Raises:
        UserError: if the name is none, or there is no token.
    """
    from huggingface_hub import constants, get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"--push-to-hub {repo!r}: expected USER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise UserError("--push-to-hub needs a network, and HF_HUB_OFFLINE is set: unset it")
    if get_token() is None:
        raise UserError("--push-to-hub needs a token of the hub: run `hf auth login`, or set HF_TOKEN")


def _upload(folder: Path, repo: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=[MARK])
    except Exception as error:  # no network, no right to write, a full quota: one message, with the cause
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"--push-to-hub {repo}: {cause}\nThe export itself is whole, in {folder}; to send it later: "
            f"hf upload {repo} {folder}"
        ) from error
