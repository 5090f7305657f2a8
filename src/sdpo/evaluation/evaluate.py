"""Draws images of fixed prompts and seeds at each number of steps, scores them, and measures the monitors."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdpo.distributed.processes import Processes
from sdpo.evaluation.conditions import Conditions
from sdpo.evaluation.monitors import DRIFT_IMAGES, Monitors
from sdpo.evaluation.record import FloatArray, ImageScores
from sdpo.evaluation.sampler import Sampler
from sdpo.loop.divergence import check_images
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.rollout import final_images
from sdpo.method import seeds
from sdpo.method.denoisers import Denoiser
from sdpo.prompts import Prompt
from sdpo.rewards.base import PlacedReward

TILES = 12
"""The number of images that are kept as pictures at each number of steps, the first ones."""


@dataclass(frozen=True)
class Drawing:
    """The model of an evaluation, and how its images are drawn.

    Attributes:
        policy: the policy that draws the images.
        embeddings: the embeddings of the prompts.
        sampler: how the images are drawn.
        training: the training sampler, whose steps the drift from the base model is measured in.
        conditions: gives the record of a sampler's conditions.
        micro_batch: trajectories a network call.
        decode_batch: images a decoder call.
        processes: the processes that share the work.
    """

    policy: Policy
    embeddings: PromptEmbeddings
    sampler: Sampler
    training: Sampler
    conditions: Callable[[Sampler], Conditions]
    micro_batch: int
    decode_batch: int
    processes: Processes


@dataclass(frozen=True)
class EvaluatedImages:
    """The results of an evaluation of one list of prompts.

    Attributes:
        scores: the scores of all images.
        tiles: the first images by number of steps, uint8 [n, H, W, 3].
        monitors: the monitors by name and number of steps; empty where none was asked for.
        network_evaluations: the network evaluations of all processes, for one latent each, without those that a launch
            repeats so that every process calls the network equally often.
    """

    scores: ImageScores
    tiles: dict[int, Tensor]
    monitors: dict[str, dict[int, float]]
    network_evaluations: int = 0


def evaluate(
    drawing: Drawing,
    prompts: Sequence[Prompt],
    rewards: Mapping[str, PlacedReward],
    *,
    steps: Sequence[int],
    images_per_prompt: int,
    monitored: int = 0,
) -> EvaluatedImages:
    """Draw every prompt `images_per_prompt` times at each number of steps, score the images, and measure the monitors.

    An image's seed comes from its prompt and its number among the images of that prompt (`image_seeds`), whatever the
    weights, the number of steps, the place in the list or the number of processes: two evaluations pair up image by
    image, and one with fewer images a prompt is a prefix of one with more. The model's own sampler draws the image
    that the pipeline's own call draws with `torch.Generator().manual_seed(seed)`.

    Args:
        drawing: the model and how it draws.
        prompts: the prompts.
        rewards: the rewards that score the images, by name.
        steps: the numbers of steps.
        images_per_prompt: images a prompt.
        monitored: the number of images of each prompt on which the monitors are measured, the first ones; 0 measures
            none. Where it is more than `images_per_prompt`, the further images are drawn and not scored.

    Raises:
        DivergenceError: if an image is not finite.
        RewardError: if a reward fails.
    """
    processes = drawing.processes
    count_drawn = max(images_per_prompt, monitored)
    images = _Images(list(prompts) * count_drawn, len(prompts) * images_per_prompt, processes)
    scores: dict[str, dict[int, FloatArray]] = {name: {} for name in rewards}
    tiles: dict[int, Tensor] = {}
    measured: dict[str, dict[int, float]] = {}
    with contextlib.ExitStack() as stack:
        for reward in rewards.values():
            stack.enter_context(reward.resident())
        for count in steps:
            backbone, monitors = drawing.policy.backbone, None
            denoiser = drawing.sampler.denoiser(backbone, count)
            if monitored:
                steps_of_training = drawing.training.denoiser(backbone, count)
                monitors = Monitors(
                    drawing.policy, steps_of_training, images.mine, len(prompts), monitored, processes.count
                )
            own_scores, own_tiles = _draw_and_score(drawing, denoiser, images, rewards, monitors)
            for name, values in own_scores.items():
                gathered = dict(processes.gather(list(zip(images.mine[: len(values)], values, strict=True))))
                scores[name][count] = np.array([gathered[i] for i in range(images.scored)], dtype=np.float64)
            shown = dict(processes.gather(own_tiles))
            tiles[count] = torch.stack([shown[i] for i in sorted(shown)]).permute(0, 2, 3, 1)
            for name, value in (monitors.finish(processes) if monitors else {}).items():
                measured.setdefault(name, {})[count] = value
    found = ImageScores(images.texts[: images.scored], images.seeds[: images.scored], scores)
    # The drift from the base model takes two more evaluations at each step of some trajectories.
    trajectories = len(images.texts) + 2 * min(DRIFT_IMAGES, len(prompts) * monitored)
    evaluations = trajectories * sum(steps) * (2 if drawing.policy.guided else 1)
    return EvaluatedImages(found, tiles, measured, evaluations)


def image_seeds(texts: Sequence[str]) -> list[int]:
    """The seed of each image of an evaluation, from the text of its prompt and its number among the text's images.

    Seeds are below 2³², so that JSON readers and other programs hold them exactly.

    Args:
        texts: the prompt of each image.
    """
    seen: Counter[str] = Counter()
    found = []
    for text in texts:
        found.append(seeds.derive("evaluation", text, seen[text]) % 2**32)
        seen[text] += 1
    return found


class _Images:
    """The images of an evaluation, by place, and this process's share of them.

    Args:
        prompts: the prompt of each image.
        scored: the number of images that are scored, the first ones.
        processes: the processes that share the work.

    Attributes:
        prompts: the prompt of each image.
        scored: the number of images that are scored, the first ones.
        texts: the text of each image's prompt.
        seeds: the seed of each image.
        mine: the places of this process's images, ascending.
        drawn: the places of the images that this process draws: its share, and perhaps one more that is not scored.
    """

    def __init__(self, prompts: Sequence[Prompt], scored: int, processes: Processes) -> None:
        self.prompts = prompts
        self.scored = scored
        self.texts = [p.text for p in prompts]
        self.seeds = image_seeds(self.texts)
        self.mine = list(range(len(prompts)))[processes.rank :: processes.count]
        # Sharded networks must be called equally often everywhere: a process with one image less draws the first one.
        self.drawn = self.mine + [0] * (-(-len(prompts) // processes.count) - len(self.mine))


def _draw_and_score(
    drawing: Drawing,
    denoiser: Denoiser,
    images: _Images,
    rewards: Mapping[str, PlacedReward],
    monitors: Monitors | None,
) -> tuple[dict[str, list[float]], list[tuple[int, Tensor]]]:
    """Draw and score this process's images at one number of steps.

    Returns:
        The scores by reward, and the first images of the evaluation that this process drew, uint8 [3, H, W], with their
        places.
    """
    scores: dict[str, list[float]] = {name: [] for name in rewards}
    tiles: list[tuple[int, Tensor]] = []
    for place, pixels in _draw(drawing, denoiser, images, monitors):
        rows = slice(place, place + len(pixels))
        prompts = [images.prompts[i] for i in images.mine[rows]]
        texts, metadata = [p.text for p in prompts], [p.metadata for p in prompts]
        check_images(pixels, texts)
        if monitors:
            monitors.look(pixels)
        own = sum(i < images.scored for i in images.mine[rows])
        for name, reward in rewards.items():
            scores[name] += reward(pixels[:own], texts[:own], metadata[:own]).tolist() if own else []
        numbered = zip(images.mine[rows], pixels, strict=True)
        tiles += [(i, (image * 255).round().byte().cpu()) for i, image in numbered if i < min(TILES, images.scored)]
    return scores, tiles


def _draw(
    drawing: Drawing, denoiser: Denoiser, images: _Images, monitors: Monitors | None
) -> Iterator[tuple[int, Tensor]]:
    """Draw this process's own images part by part.

    Yields:
        The number of images before the part, and the images of the part, [n, 3, H, W].
    """
    place = 0
    for pixels in final_images(
        drawing.policy,
        denoiser,
        drawing.embeddings,
        [images.texts[i] for i in images.drawn],
        [images.seeds[i] for i in images.drawn],
        drawing.micro_batch,
        drawing.decode_batch,
        monitors.drift if monitors else None,
    ):
        own = pixels[: max(0, len(images.mine) - place)]
        if len(own):
            yield place, own
        place += len(own)
