"""Scores at each number of steps on fixed prompts and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdpo.policy import Policy, PromptEmbeddings
from sdpo.processes import Processes
from sdpo.prompts import Prompt
from sdpo.rewards import Reward, checked_scores
from sdpo.sampler import final_images

TILES = 12


@dataclass
class Evaluation:
    """Scores of N fixed images at each number of steps.

    Attributes:
        prompts: N texts.
        seeds: N image seeds.
        scores: by reward, by number of steps, N scores.
        tiles: the first images at each number of steps, uint8 [n, H, W, 3].
    """

    prompts: list[str]
    seeds: list[int]
    scores: dict[str, dict[int, list[float]]]
    tiles: dict[int, Tensor] = field(default_factory=dict)

    def mean(self, reward: str, steps: int) -> float:
        """Mean score."""
        values = self.scores[reward][steps]
        return sum(values) / len(values)

    def metrics(self) -> dict[str, float]:
        """`eval/<reward>/<steps>` means."""
        return {f"eval/{r}/{s}": self.mean(r, s) for r, by_steps in self.scores.items() for s in by_steps}

    def as_json(self) -> dict[str, Any]:
        """A plain mapping; step counts become strings."""
        scores = {r: {str(s): v for s, v in by.items()} for r, by in self.scores.items()}
        return {"prompts": self.prompts, "seeds": self.seeds, "scores": scores}


def evaluate(
    policy: Policy,
    embeddings: PromptEmbeddings,
    prompts: Sequence[Prompt],
    rewards: Mapping[str, Reward],
    *,
    steps: Sequence[int],
    images_per_prompt: int,
    eta: float,
    micro_batch: int,
    processes: Processes,
) -> Evaluation:
    """Sample every prompt `images_per_prompt` times at each number of steps and score the images.

    Image i has seed i, whatever the weights, the number of steps, or the number of processes: two evaluations of
    one prompt list pair up image by image, and one with fewer images a prompt is a prefix of one with more. Images
    come from the last step's x̂ of the stochastic sampler.

    Raises:
        RewardError: if a reward fails.
    """
    everything = list(prompts) * images_per_prompt
    image_seeds = list(range(len(everything)))
    mine = image_seeds[processes.rank :: processes.count]
    texts = [everything[i].text for i in mine]
    metadata = [everything[i].metadata for i in mine]
    result = Evaluation([p.text for p in everything], image_seeds, {name: {} for name in rewards})
    for count in steps:
        denoiser = policy.backbone.denoiser(count, eta)
        images = final_images(policy, denoiser, embeddings, texts, mine, micro_batch)
        for name, reward in rewards.items():
            values = checked_scores(name, reward, images, texts, metadata).tolist()
            gathered = dict(processes.gather(list(zip(mine, values, strict=True))))
            result.scores[name][count] = [gathered[i] for i in image_seeds]
        shown = [(i, (image * 255).round().byte().cpu()) for i, image in zip(mine, images, strict=True) if i < TILES]
        tiles = dict(processes.gather(shown))
        result.tiles[count] = torch.stack([tiles[i] for i in sorted(tiles)]).permute(0, 2, 3, 1)
    return result


def write_evaluation(evaluation: Evaluation, run_dir: Path, epoch: int, extra: dict[str, Any]) -> None:
    """Write `evaluation/epoch_NNNN.json` and its strips of images."""
    folder = run_dir / "evaluation" / f"epoch_{epoch:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    for steps, tiles in evaluation.tiles.items():
        Image.fromarray(torch.cat(list(tiles), dim=1).numpy()).save(folder / f"steps_{steps}.png")
    record = {"epoch": epoch, **extra, **evaluation.as_json()}
    temporary = folder.with_suffix(".tmp")
    temporary.write_text(json.dumps(record), encoding="utf-8")
    temporary.replace(folder.with_suffix(".json"))
