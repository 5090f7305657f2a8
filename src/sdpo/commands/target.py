"""Using what a run made: its tuned model beside its base, for sampling and evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sdpo.assembly import build
from sdpo.backbones import PipelineBackbone
from sdpo.config.schema import Config
from sdpo.distributed.processes import Processes
from sdpo.errors import UserError
from sdpo.evaluation.evaluate import Evaluation, evaluate
from sdpo.loop.micro_batch import default_samples
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.prompts import load_prompts
from sdpo.report.stats import paired_gain
from sdpo.rewards import REWARDS
from sdpo.run.checkpoint import CheckpointStore
from sdpo.run.result import read_result
from sdpo.system.log import logger


def open_target(target: str) -> tuple[Config, Path | None]:
    """The configuration of a run directory, or a default one around a model; and the run's directory, if it is one.

    Says on stderr of which epoch a run's weights are, where they are not the newest.

    Raises:
        UserError: if the run has no finished weights.
    """
    run_dir = Path(target)
    if not run_dir.exists() and (run_dir.is_absolute() or target.startswith(".")):
        raise UserError(f"there is no run and no model at {target}")
    if not (run_dir / "config.yaml").is_file():
        return Config.load(None, model={"path": target}), None
    build.check_format(run_dir)
    config = Config.load(run_dir / "config.yaml")
    result = read_result(run_dir, config)
    if result is None:
        raise UserError(f"{run_dir} holds no finished weights yet: repeat its train command to finish it")
    if (newest := max(CheckpointStore(run_dir / "checkpoints").epochs(), default=0)) > result.epoch:
        logger.warning("%s went on to epoch %d, its result is that of epoch %d", run_dir, newest, result.epoch)
    return config, run_dir


def load_tuned(config: Config, run_dir: Path, device: torch.device) -> PipelineBackbone:
    """The tuned model, as anyone would load it: the base with the LoRA, or the whole pipeline."""
    if config.lora is None:
        # Scheduler and fused LoRA were saved with the weights.
        saved = {"path": str(run_dir / "model"), "revision": "main"}
        model = config.model.model_copy(update=saved | dict.fromkeys(("variant", "scheduler", "fuse_lora")))
        return build.build_backbone(config.model_copy(update={"model": model}), device)
    backbone = build.build_backbone(config, device)
    backbone.load_lora(run_dir / "lora")
    return backbone


def sample_target(target: str, prompt: str, steps: int, seed: int, compare: bool, device: str = "auto") -> Image.Image:
    """One image, or base and tuned side by side.

    Raises:
        UserError: if the target cannot be loaded, or steps is out of its schedule.
    """
    processes = Processes(device)
    config, run_dir = open_target(target)
    if compare and run_dir is None:
        raise UserError(f"--compare needs the directory of a run, with a base and a tuned model; {target} is a model")
    models = []
    if run_dir is None or compare:
        models.append(build.build_backbone(config, processes.device))
    if run_dir is not None:
        models.append(load_tuned(config, run_dir, processes.device))
    images = []
    for backbone in models:
        backbone.denoiser(steps, config.sample.eta)  # refuses impossible step counts with a message
        images += backbone.generate([prompt], steps, [seed], config.sample.guidance_scale)
    sheet = Image.new("RGB", (sum(i.width for i in images), images[0].height))
    for place, image in enumerate(images):
        sheet.paste(image, (place * images[0].width, 0))
    return sheet


def evaluate_target(
    target: str,
    steps: list[int],
    prompts: str | None,
    rewards: list[str] | None,
    images_per_prompt: int,
    device: str = "auto",
) -> tuple[dict[str, Any], Path | None]:
    """Scores of the base model and, for a run, of the tuned one on the same prompts and seeds.

    Returns:
        The result (`prompts`, `seeds`, `base`, `after`, `summary`) and where to write it by default.

    Raises:
        UserError: if something cannot be loaded, or a reward fails.
    """
    processes = Processes(device)
    config, run_dir = open_target(target)
    for name in [] if rewards else config.rewards:
        if name not in REWARDS and ":" not in name and "." not in name:
            raise UserError(f"this run's reward {name!r} was a Python object: name one by --reward, see `sdpo rewards`")
    names = rewards or [*config.rewards, *config.evaluate.observers]
    callables = build.load_rewards(config, names, processes.device)
    chosen = load_prompts(prompts if prompts is not None else config.prompts.train)

    def run(backbone: PipelineBackbone) -> Evaluation:
        policy = Policy(backbone, config.sample.guidance_scale, build.compute_dtype(config, processes.device))
        return evaluate(
            policy,
            PromptEmbeddings(backbone, [p.text for p in chosen]),
            chosen,
            callables,
            steps=steps,
            images_per_prompt=images_per_prompt,
            eta=config.sample.eta,
            decode_batch=build.decode_batch(config, backbone),
            micro_batch=default_samples(math.prod(backbone.latent_shape), processes.device),
            processes=processes,
        )

    base = run(build.build_backbone(config, processes.device))
    result: dict[str, Any] = {"prompts": base.prompts, "seeds": base.seeds, "base": base.as_json()["scores"]}
    if run_dir is None:
        result["summary"] = {n: {str(s): {"base": base.mean(n, s)} for s in steps} for n in names}
        return result, None
    tuned = run(load_tuned(config, run_dir, processes.device))
    result["after"] = tuned.as_json()["scores"]
    result["summary"] = {n: {str(s): _gain(base, tuned, n, s) for s in steps} for n in names}
    return result, run_dir / "evaluation.json"


def _gain(base: Evaluation, tuned: Evaluation, name: str, steps: int) -> dict[str, float | None]:
    """Means and the paired gain with its standard error."""
    gain = paired_gain(np.array(base.scores[name][steps]), np.array(tuned.scores[name][steps]))
    return {
        "base": base.mean(name, steps),
        "tuned": tuned.mean(name, steps),
        "gain": gain.mean,
        "standard_error": gain.standard_error if gain.images > 1 else None,
    }
