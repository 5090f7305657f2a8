"""The imports of commands and modules: listings and messages import no heavy library, the trainer no reward model."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"accelerate", "diffusers", "numpy", "peft", "torch", "transformers"}


@pytest.mark.parametrize(
    "command", ["--help", "--version", "train --help", "presets", "rewards", "train emoji epoch=1"]
)
def test_listings_and_messages_import_no_heavy_library(command: str) -> None:
    call = [sys.executable, "-X", "importtime", "-m", "sdpo", *command.split()]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    times = [line.split("|") for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {columns[2].strip().split(".")[0] for columns in times}
    assert "sdpo" in imported and not HEAVY & imported, HEAVY & imported
    assert done.returncode == (2 if "epoch=1" in command else 0), done.stderr


def test_importing_sdpo_imports_no_heavy_library() -> None:
    modules = "sdpo, sdpo.rewards.registry, sdpo.rewards.models.weights, sdpo.system.interrupt, sdpo.system.time_limit"
    code = f"import sys, {modules}; assert not {HEAVY} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_trainer_imports_no_reward_model() -> None:
    code = (
        "import sdpo.trainer, sdpo.rewards, sys; from sdpo.rewards import REWARDS; "
        "loaded = {path.split(':')[0] for path in REWARDS.values()} & set(sys.modules); assert not loaded, loaded; "
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
