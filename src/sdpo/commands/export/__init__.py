"""`sdpo export`: a run's weights in the form that other programs load, with a model card."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sdpo.commands.export.folder import new_folder
from sdpo.commands.export.hub import check_upload, upload
from sdpo.commands.export.weights import ChosenWeights, Format, Kind, WrittenModel, choose_weights, write_weights
from sdpo.commands.model_card import Exported, render_card
from sdpo.config import Config
from sdpo.errors import UserError
from sdpo.report.curves_png import draw_curves
from sdpo.report.reader import Run, read_run
from sdpo.report.samples_png import draw_samples
from sdpo.run.directory import RunDirectory

__all__ = ["export"]

_FEW_STEPS = 4
"""The card's example draws with the most steps, up to these, that the run was evaluated at."""


def export(
    run_dir: Path,
    to: Format,
    weights: Kind | None = None,
    epoch: int | None = None,
    output: Path | None = None,
    repo: str | None = None,
) -> Path:
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

    Returns:
        The folder.

    Raises:
        UserError: if the run has no such weights, the folder holds other files, or the upload fails.
    """
    report, run = read_run(run_dir), RunDirectory(run_dir)
    config = Config.of_run(run.config)
    if to == "comfyui" and config.lora is None:
        raise UserError("--to comfyui writes a LoRA, and this run trained all weights: use --to merged")
    if repo is not None:
        check_upload(repo)
    chosen = choose_weights(run, config, weights, epoch)
    folder = output or run.export(to)
    with new_folder(folder) as place:
        written = write_weights(run, config, chosen, to, place, output.name if output else run.name)
        exported = _describe(config, chosen, written, repo or str(folder), (repo or report.name).rsplit("/", 1)[-1])
        _write_card(report, config, exported, place)
    if repo is not None:
        upload(folder, repo)
    return folder


def _describe(config: Config, chosen: ChosenWeights, written: WrittenModel, address: str, name: str) -> Exported:
    """Collect what the card says about an export."""
    height, width = written.backbone.image_size
    steps = max((s for s in config.evaluate.steps if s <= _FEW_STEPS), default=min(config.evaluate.steps))
    arguments = written.backbone.call_arguments(steps, config.sample.guidance_scale)
    return Exported(
        name=name,
        address=address,
        weight_name=written.lora_file,
        weights=chosen.words,
        as_evaluated=chosen.averaged == (config.train.ema_decay is not None),
        epoch=chosen.epoch,
        steps=steps,
        arguments={"height": height, "width": width, **arguments},
    )


def _write_card(run: Run, config: Config, exported: Exported, place: Path) -> None:
    """Write the card with its pictures, from the metrics up to the exported epoch."""
    run = dataclasses.replace(
        run,
        metrics=[row for row in run.metrics if int(row["epoch"]) <= exported.epoch],
        evaluations=[evaluation for evaluation in run.evaluations if evaluation.epoch <= exported.epoch],
    )
    draw_curves(run, place / "curves.png")
    draw_samples(run, place / "samples.png")
    (place / "README.md").write_text(render_card(run, config, exported), encoding="utf-8")
