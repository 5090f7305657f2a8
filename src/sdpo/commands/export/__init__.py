"""`sdpo export`: a run's weights in the form that other programs load, with a model card."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sdpo.commands.export.contents import describe_export
from sdpo.commands.export.folder import new_folder
from sdpo.commands.export.hub import check_upload, upload
from sdpo.commands.export.lora_files import label_lora
from sdpo.commands.export.pictures import Picture, choose_pictures
from sdpo.commands.export.weights import DataType, Format, Kind, WrittenModel, choose_weights, write_weights
from sdpo.commands.model_card import Exported, render_card
from sdpo.config import Config
from sdpo.errors import UserError
from sdpo.report.curves_png import draw_curves
from sdpo.report.formatting import percent
from sdpo.report.reader import Run, read_run
from sdpo.report.samples_png import draw_samples
from sdpo.run.directory import RunDirectory
from sdpo.system.log import logger

__all__ = ["Export", "export"]

_NOTABLE_ROUNDING = 0.05
"""The distance between a merged model and its adapter from which the user is warned."""


@dataclasses.dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        folder: the folder with the files.
        dtype: data type of merged weights; None where nothing was merged or converted.
        rounding: the relative L2 distance between the merged weights' change and the LoRA's; None where no LoRA was
            merged.
    """

    folder: Path
    dtype: DataType | None
    rounding: float | None


def export(
    run_dir: Path,
    to: Format,
    weights: Kind | None = None,
    epoch: int | None = None,
    output: Path | None = None,
    repo: str | None = None,
    dtype: DataType | None = None,
) -> Export:
    """Write a run's weights for use elsewhere.

    Args:
        run_dir: the directory of the run.
        to: `diffusers` writes a LoRA folder, or the pipeline where all weights were trained; `comfyui` writes a LoRA in
            one file under ComfyUI's names; `merged` writes the whole pipeline, with the LoRA merged into its weights.
        weights: `ema` for the moving average, `raw` for the trained weights; None takes the average where the run has
            one.
        epoch: the epoch of a checkpoint; None takes the run's result, or the newest checkpoint before there is a
            result.
        output: a new folder, or one that an earlier export wrote; None takes `export/<to>` in the run's directory.
        repo: the name of a repository on the hub, to which the folder is uploaded; None uploads nothing.
        dtype: data type of the weights of a merged model; None takes the model's.

    Raises:
        UserError: if the run has no such weights, the folder holds other files, or the upload fails.
    """
    report, run = read_run(run_dir), RunDirectory(run_dir)
    config = Config.of_run(run.config)
    if to == "comfyui" and config.lora is None:
        raise UserError("--to comfyui writes a LoRA, and this run trained all weights: use --to merged")
    if dtype is not None and to != "merged":
        raise UserError(f"--dtype {dtype} is the data type of a merged model: use it with --to merged")
    if repo is not None:
        check_upload(repo)
    chosen = choose_weights(run, config, weights, epoch)
    folder = output or run.export(to)
    with new_folder(folder) as place:
        written = write_weights(run, config, chosen, to, place, dtype)
        report = _until(report, chosen.epoch)
        title = (repo or run.name).rsplit("/", 1)[-1]
        exported = describe_export(report, config, chosen, written, repo or str(folder), title)
        pictures = choose_pictures(report, exported.steps)
        if written.lora_file is not None:
            first = next(iter(pictures), None)
            exported = label_lora(place / written.lora_file, config, chosen, written, exported, first)
        _write_card(report, config, exported, pictures, place)
    _warn_of_rounding(written)
    if repo is not None:
        upload(folder, repo)
    return Export(folder, written.dtype, written.rounding)


def _until(run: Run, epoch: int) -> Run:
    """A run without the metrics and evaluations after an epoch."""
    return dataclasses.replace(
        run,
        metrics=[row for row in run.metrics if int(row["epoch"]) <= epoch],
        evaluations=[evaluation for evaluation in run.evaluations if evaluation.epoch <= epoch],
    )


def _write_card(run: Run, config: Config, exported: Exported, pictures: Sequence[Picture], place: Path) -> None:
    """Write the card with its pictures."""
    images = [(picture.prompt, f"images/{i}.png") for i, picture in enumerate(pictures)]
    for picture, (_, file) in zip(pictures, images, strict=True):
        (place / file).parent.mkdir(exist_ok=True)
        picture.save(place / file)
    draw_curves(run, place / "curves.png")
    draw_samples(run, place / "samples.png")
    card = render_card(run, config, dataclasses.replace(exported, images=images))
    (place / "README.md").write_text(card, encoding="utf-8")


def _warn_of_rounding(written: WrittenModel) -> None:
    """Warn of a merged model that is another model than the base model with its LoRA."""
    if written.rounding is not None and written.rounding > _NOTABLE_ROUNDING:
        logger.warning(
            "the merged model is not the base model with its LoRA: rounding to %s takes %s of the LoRA's change away; "
            "export with --dtype float32, or with --to diffusers, which keeps the LoRA apart",
            written.dtype,
            percent(written.rounding),
        )
