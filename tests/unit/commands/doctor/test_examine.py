"""`sdpo doctor` as a whole: it finds each kind of fault, and writes nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import bad_rewards
from helpers.command_line import Run, failed, succeeded

from sdpo import Config
from sdpo.commands.doctor import examine
from sdpo.rewards.base import PlacedReward


def lines(output: str) -> dict[str, str]:
    """The lines of each check, with their status."""
    found: dict[str, str] = {}
    for line in output.splitlines():
        match = re.match(r"(ok|WARN|FAIL) +((?:reward )?\S+)", line)
        if match:
            found[match[2]] = found.get(match[2], "") + line
    return found


def test_a_healthy_run_and_every_kind_of_sick_reward(sdpo: Run, tmp_path: Path, tiny_overrides: list[str]) -> None:
    good = bad_rewards.path_to("contrast")
    healthy = succeeded(sdpo("doctor", "emoji", *tiny_overrides, f"rewards={{{good}: 1}}"))
    found = lines(healthy.stdout)
    needed = "batches hub precision memory disk log-prob log-ratio determinism gradient images".split()
    assert set(found) == {*needed, f"reward {good}"} and all(line.startswith("ok") for line in found.values()), found
    assert "11 ok, 0 WARN, 0 FAIL" in healthy.stdout

    expected = {
        "contrast": "ok", "constant": "FAIL.*nothing to learn", "noisy": "FAIL.*differently when asked twice",
        "relative": "FAIL.*alone differently than in a batch", "Drifting": "WARN.*asked twice",
        "blank": "WARN.*likes a blank image", "short": "FAIL.*one score an image", "nan": "FAIL.*nan for prompt",
        "raises": "FAIL.*the judge is asleep",
    }  # fmt: skip
    names = {name: bad_rewards.path_to(name) for name in expected}
    sick = sdpo("doctor", "emoji", *tiny_overrides, f"rewards={{{', '.join(f'{path}: 1' for path in names.values())}}}")
    assert sick.returncode == 1 and "Traceback" not in sick.stdout + sick.stderr
    found = lines(sick.stdout)
    for name, pattern in expected.items():
        assert re.match(pattern, found[f"reward {names[name]}"]), found[f"reward {names[name]}"]
    assert list(tmp_path.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["emojy"], ["'emojy'", "did you mean 'emoji'"]),
        (["emoji", "rewards={colorfulnes: 1}"], ["rewards: ", "'colorfulnes' (did you mean 'colorfulness'?)"]),
        (["emoji", "stop_when=[{metric: x, below: 1}]"], ["stop_when", "'x'"]),
        (["emoji", "--steps"], ["unrecognized arguments: --steps"]),
    ],
)
def test_mistakes_of_the_user_have_exit_code_2(sdpo: Run, arguments: list[str], words: list[str]) -> None:
    failed(sdpo("doctor", *arguments), *words)


def test_a_model_that_cannot_be_loaded_is_a_finding(sdpo: Run, tmp_path: Path, tiny_pipeline: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "broken")
    (tmp_path / "broken" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    result = sdpo("doctor", "emoji", "model.path=./broken", "evaluate.judge=null")
    found = lines(result.stdout)
    assert result.returncode == 1 and found["model"].startswith("FAIL") and "./broken" in found["model"]
    assert found["reward emoji_score"].startswith("WARN") and "no samples" in found["reward emoji_score"]


def test_the_checks_compute_in_the_precision_of_the_run_and_nothing_else_does(
    make_config: Callable[..., Config], tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision, seen = torch.get_float32_matmul_precision, list[str]()
    score = PlacedReward.__call__

    def spy(*arguments: Any) -> torch.Tensor:
        seen.append(precision())
        return score(*arguments)

    monkeypatch.setattr(PlacedReward, "__call__", spy)
    for _ in examine(make_config(model={"path": str(tiny_pipeline), "tf32": True})):
        assert precision() == "highest"
    assert set(seen) == {"high"}
