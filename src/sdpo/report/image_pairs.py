"""The section of images: base and tuned model at the same prompt and seed, with their scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdpo.evaluation.record import Evaluation
from sdpo.report.formatting import number, step_label
from sdpo.report.gallery import HtmlImage, StepImages, gallery, html_image
from sdpo.report.reader import Run
from sdpo.report.stats import score_names


@dataclass(frozen=True)
class ScoreChange:
    """An image's score before and after training.

    Attributes:
        text: both scores, or those that are known; may be empty.
        judge: the judge's name; None if the score is a reward.
    """

    text: str
    judge: str | None


@dataclass(frozen=True)
class ImagePair:
    """The images of one prompt and seed.

    Attributes:
        images: the images by the model's name, base and tuned; one of them may be missing.
        prompt: the prompt, or empty if the evaluation has none for the image.
        seed: the seed of the noise; None if the evaluation has none for the image.
        scores: the scores to print below the images.
    """

    images: dict[str, HtmlImage]
    prompt: str
    seed: int | None
    scores: list[ScoreChange]


def image_pairs(run: Run) -> dict[str, list[ImagePair]]:
    """Return the pairs of images by number of steps in words."""
    scores = captioned_scores(run)
    return {
        step_label(row.steps): [_pair(run, row, i, scores) for i in range(max(len(row.before), len(row.after)))]
        for row in gallery(run)
    }


def captioned_scores(run: Run) -> list[str]:
    """Return the first reward and the first judge: more numbers would distract from the image."""
    names = score_names(run)
    rewards, judges = [n for n in names if n not in run.judges], [n for n in names if n in run.judges]
    return rewards[:1] + judges[:1]


def _pair(run: Run, row: StepImages, i: int, scores: list[str]) -> ImagePair:
    evaluation = run.tuned or run.base
    prompts, seeds = (evaluation.seen.prompts, evaluation.seen.seeds) if evaluation else ([], [])
    prompt = prompts[i] if i < len(prompts) else ""
    seed = seeds[i] if i < len(seeds) else None
    of_seed = f", seed {seed}" if seed is not None else ""
    images = {
        model: html_image(tiles[i], f"{model}, {step_label(row.steps)}{of_seed}: {prompt}")
        for model, tiles in (("base", row.before), ("tuned", row.after))
        if i < len(tiles)
    }
    return ImagePair(images, prompt, seed, [_change(run, name, row.steps, i) for name in scores])


def _change(run: Run, name: str, steps: int, i: int) -> ScoreChange:
    judged = name in run.judges
    shown = [_score_text(e, name, steps, i, judged) for e in (run.base, run.tuned) if e is not None]
    return ScoreChange(" → ".join(text for text in shown if text), name if judged else None)


def _score_text(evaluation: Evaluation, name: str, steps: int, i: int, judged: bool) -> str:
    """Return the score of image `i`, or an empty text if it is unknown or not finite."""
    values = evaluation.seen.scores.get(name, {}).get(steps)
    if values is None or i >= len(values) or not math.isfinite(values[i]):
        return ""
    if judged:
        return "✓" if values[i] > 0.5 else "✗"
    return number(float(values[i]), 3)
