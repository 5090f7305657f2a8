"""What a run warns of at its start: steps with hardly any noise, and statistics that come late or never."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers.plane_model import ALPHAS
from helpers.small_run import config as small

from sdpo import Config, Trainer
from sdpo.assembly.prompt_statistics import describe_statistics
from sdpo.assembly.quiet_steps import describe_quiet_steps
from sdpo.method.denoisers import DDIM, RectifiedFlow


def sdpo(credit: str = "step", **sample: object) -> Config:
    return Config.load("emoji", algorithm={"name": "sdpo", "credit": credit}, sample={"num_steps": 4, **sample})


def test_the_quiet_steps_of_ddim_are_named_where_they_are_trained() -> None:
    denoiser = DDIM(ALPHAS, 4, "v_prediction", 1.0)
    assert denoiser.std[3] < 0.05 < denoiser.std[2]
    text = describe_quiet_steps(sdpo(), denoiser)
    assert text.startswith(f"the noise of step 4 ({denoiser.std[3].item():.2g}) of 4 has a standard deviation below")
    assert "train.first_steps=3 leaves them out" in text
    assert describe_quiet_steps(sdpo("future"), denoiser) == "", "the last step is not trained"
    chosen = Config.load("emoji", ["algorithm.credit=step", "sample.num_steps=4", "train.first_steps=3"])
    assert describe_quiet_steps(chosen, denoiser) == ""


def test_the_quiet_steps_of_a_flow() -> None:
    sigmas = torch.tensor([1.0, 0.6, 0.03, 0.0])
    denoiser = RectifiedFlow(sigmas, 1000 * sigmas[:-1], 0.7)
    text = describe_quiet_steps(sdpo(num_steps=3), denoiser)
    assert "step 2 (0.021) of 3" in text and "train.first_steps=1" in text
    loud = RectifiedFlow(sigmas, 1000 * sigmas[:-1], 0.7, "flow_grpo")
    assert describe_quiet_steps(sdpo("future", num_steps=3), loud) == ""


@pytest.mark.parametrize(
    ("epochs", "words"),
    [(40, ""), (8, ""), (7, "from epoch 4 of 7 on"), (3, "drawn 12.0 times in the whole run, and .* is 16: no prompt")],
)
def test_when_a_prompt_has_statistics_of_its_own(epochs: int, words: str) -> None:
    """180 single trajectories of 45 prompts an epoch: four entries each, and sixteen are needed."""
    config = Config.load(
        "emoji", ["algorithm=ddpo", f"epochs={epochs}", "sample.prompts_per_epoch=180", "train.batch_size=60"]
    )
    found = describe_statistics(config, 45)
    assert bool(found) == bool(words)
    if words:
        assert re.search(words, found) and "normalizer=pair" not in found, "which compares branches"


def test_a_run_says_so_at_its_start(tiny_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Trainer(small(tiny_pipeline, tmp_path / "quiet", sample={"num_steps": 2}))
    assert "the noise of step 2" in caplog.text and "from epoch" not in caplog.text
    caplog.clear()
    Trainer(small(tiny_pipeline, tmp_path / "late", epochs=1, advantage={"min_count": 8}, train={"first_steps": 1}))
    assert "no prompt gets statistics of its own" in caplog.text and "the noise of step" not in caplog.text
