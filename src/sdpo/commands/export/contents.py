"""The description of an export for its model card."""

from __future__ import annotations

from sdpo.commands.export.weights import ChosenWeights, WrittenModel
from sdpo.commands.model_card import Exported
from sdpo.config import Config
from sdpo.report.reader import Run

_FEW_STEPS = 4
"""The card's example draws with the most steps, up to these, that the run was evaluated at."""


def describe_export(
    run: Run, config: Config, chosen: ChosenWeights, written: WrittenModel, address: str, name: str
) -> Exported:
    """Collect what the card says about an export.

    Args:
        run: the run, without evaluations after the exported epoch.
        config: the run's configuration.
        chosen: the exported weights.
        written: the model that they belong to.
        address: the path or the hub name that the export is loaded from.
        name: the card's title.
    """
    height, width = written.backbone.image_size
    steps = max((s for s in config.evaluate.steps if s <= _FEW_STEPS), default=min(config.evaluate.steps))
    guidance_scale = written.backbone.guidance_scale(config.sample.guidance_scale)
    arguments = written.backbone.call_arguments(steps, guidance_scale)
    return Exported(
        name=name,
        address=address,
        weight_name=written.lora_file,
        weights=chosen.words,
        as_evaluated=chosen.averaged == (config.train.ema_decay is not None),
        epoch=chosen.epoch,
        prompt=next((e.seen.prompts[0] for e in run.evaluations if e.seen.prompts), "a photo of a cat"),
        steps=steps,
        sampler=type(written.backbone.pipeline.scheduler).__name__,
        guidance_scale=guidance_scale,
        arguments={"height": height, "width": width, **arguments},
        dtype=written.dtype,
        rounding=written.rounding,
    )
