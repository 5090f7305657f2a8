"""Scores at each number of steps on fixed prompts and seeds."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdpo.distributed.processes import Processes
from sdpo.errors import UserError
from sdpo.evaluation.monitors import Monitors
from sdpo.loop.divergence import check_images
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.rollout import final_images
from sdpo.prompts import Prompt
from sdpo.rewards import PlacedReward
from sdpo.system.durable import sync_tree, write_whole

TILES = 12


@dataclass
class Evaluation:
    """Scores of N fixed images at each number of steps.

    Attributes:
        prompts: N texts.
        seeds: N image seeds.
        scores: by reward, by number of steps, N scores.
        tiles: the first images at each number of steps, uint8 [n, H, W, 3].
        monitors: by name, by number of steps; see `monitors`.
        monitored: images a prompt that they were measured on.
    """

    prompts: list[str]
    seeds: list[int]
    scores: dict[str, dict[int, list[float]]]
    tiles: dict[int, Tensor] = field(default_factory=dict)
    monitors: dict[str, dict[int, float]] = field(default_factory=dict)
    monitored: int = 0

    def mean(self, reward: str, steps: int) -> float:
        """Mean score."""
        values = self.scores[reward][steps]
        return sum(values) / len(values)

    def metrics(self) -> dict[str, float]:
        """`eval/<reward>/<steps>` means, and `monitor/<name>/<steps>`."""
        scores = {f"eval/{r}/{s}": self.mean(r, s) for r, by_steps in self.scores.items() for s in by_steps}
        return scores | {f"monitor/{n}/{s}": v for n, by_steps in self.monitors.items() for s, v in by_steps.items()}

    def as_json(self) -> dict[str, Any]:
        """A plain mapping; step counts become strings."""
        scores = {r: {str(s): v for s, v in by.items()} for r, by in self.scores.items()}
        record: dict[str, Any] = {"prompts": self.prompts, "seeds": self.seeds, "scores": scores}
        if self.monitored:
            record["monitored"] = self.monitored
            record["monitors"] = {n: {str(s): v for s, v in by.items()} for n, by in self.monitors.items()}
        return record


def evaluate(
    policy: Policy,
    embeddings: PromptEmbeddings,
    prompts: Sequence[Prompt],
    rewards: Mapping[str, PlacedReward],
    *,
    steps: Sequence[int],
    images_per_prompt: int,
    eta: float,
    micro_batch: int,
    decode_batch: int = 32,
    processes: Processes,
    monitored: int = 0,
) -> Evaluation:
    """Sample every prompt `images_per_prompt` times at each number of steps, score the images, and look at them.

    Image i has seed i, whatever the weights, the number of steps, or the number of processes: two evaluations of
    one prompt list pair up image by image, and one with fewer images a prompt is a prefix of one with more. Images
    come from the last step's x̂ of the stochastic sampler. The monitors are of the first `monitored` images a prompt.

    Raises:
        DivergenceError: if an image is not finite.
        RewardError: if a reward fails.
    """
    everything = list(prompts) * images_per_prompt
    image_seeds = list(range(len(everything)))
    mine = image_seeds[processes.rank :: processes.count]
    # Sharded networks must be called equally often everywhere: who has one image less draws the first once more.
    drawn = mine + [0] * (-(-len(image_seeds) // processes.count) - len(mine))
    texts = [everything[i].text for i in drawn]
    metadata = [everything[i].metadata for i in mine]
    result = Evaluation([p.text for p in everything], image_seeds, {name: {} for name in rewards}, monitored=monitored)
    with contextlib.ExitStack() as stack:
        for reward in rewards.values():
            stack.enter_context(reward.resident())
        for count in steps:
            denoiser = policy.backbone.denoiser(count, eta)
            scores: dict[str, list[float]] = {name: [] for name in rewards}
            shown: list[tuple[int, Tensor]] = []
            done = 0
            monitors = Monitors(policy, denoiser, mine, len(prompts), monitored, processes.count) if monitored else None
            watch = monitors.drift if monitors else None
            for images in final_images(policy, denoiser, embeddings, texts, drawn, micro_batch, decode_batch, watch):
                rows = slice(done, min(done + len(images), len(mine)))
                done, images = rows.stop, images[: rows.stop - rows.start]
                if not len(images):
                    continue
                check_images(images, texts[rows])
                if monitors:
                    monitors.look(images)
                for name, reward in rewards.items():
                    scores[name] += reward(images, texts[rows], metadata[rows]).tolist()
                pixels = zip(mine[rows], images, strict=True)
                shown += [(i, (image * 255).round().byte().cpu()) for i, image in pixels if i < TILES]
            for name, values in scores.items():
                gathered = dict(processes.gather(list(zip(mine, values, strict=True))))
                result.scores[name][count] = [gathered[i] for i in image_seeds]
            tiles = dict(processes.gather(shown))
            result.tiles[count] = torch.stack([tiles[i] for i in sorted(tiles)]).permute(0, 2, 3, 1)
            for name, value in (monitors.finish(processes) if monitors else {}).items():
                result.monitors.setdefault(name, {})[count] = value
    return result


def weighted_gain(base: Evaluation, now: Evaluation, weights: Mapping[str, float]) -> float | None:
    """How much better the weighted rewards are than the base model's, in the base's standard deviations.

    The mean over the step counts and images that both evaluations have; comparable within a run, whatever the rewards'
    scales are. None if they have no step count in common, as when a resumed run evaluates other ones.
    """
    total = 0.0
    for name, weight in weights.items():
        common = {s: v for s, v in base.scores[name].items() if s in now.scores[name]}
        if not common:
            return None
        for steps, before in common.items():
            old, new = torch.tensor(before, dtype=torch.float64), torch.tensor(now.scores[name][steps])
            count = min(len(old), len(new))
            spread = old.std(correction=0).item() + 1e-8
            total += weight * (new[:count] - old[:count]).mean().item() / spread / len(common)
    return total


def read_scores(run_dir: Path, epoch: int) -> Evaluation | None:
    """An evaluation that was written, without its images; None if there is none.

    Raises:
        UserError: if it is damaged.
    """
    path = _record(run_dir, epoch)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it, and the run goes on without its comparisons"
        ) from error
    scores, monitors = (
        {name: {int(s): values for s, values in by.items()} for name, by in record.get(key, {}).items()}
        for key in ("scores", "monitors")
    )
    return Evaluation(
        record["prompts"], record["seeds"], scores, monitors=monitors, monitored=record.get("monitored", 0)
    )


def discard_after(run_dir: Path, epoch: int) -> None:
    """Delete the evaluations of epochs after `epoch`, which a run that goes on makes again, and half written ones."""
    for path in (run_dir / "evaluation").glob("epoch_*"):
        number = path.stem.removeprefix("epoch_")
        if not number.isdecimal() or int(number) > epoch:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _record(run_dir: Path, epoch: int) -> Path:
    return run_dir / "evaluation" / f"epoch_{epoch:04d}.json"


def write_evaluation(evaluation: Evaluation, run_dir: Path, epoch: int, extra: dict[str, Any]) -> None:
    """Write `evaluation/epoch_NNNN.json` and its strips of images."""
    target = _record(run_dir, epoch)
    folder = target.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for steps, tiles in evaluation.tiles.items():
        Image.fromarray(torch.cat(list(tiles), dim=1).numpy()).save(folder / f"steps_{steps}.png")
    sync_tree(folder)
    write_whole(target, json.dumps({"epoch": epoch, **extra, **evaluation.as_json()}))
