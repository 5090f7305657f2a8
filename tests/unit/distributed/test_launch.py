"""The launch's sharding: reading it changes no environment variable, and impossible settings are refused."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from sdpo import Config
from sdpo.distributed.launch import FSDP2, ZeRO2, check, loading_everywhere, requested
from sdpo.errors import UserError

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block, Other",
}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
has_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


def launch_variables() -> dict[str, str]:
    """The environment variables of launches and their libraries; DeepSpeed's import sets others for itself."""
    return {name: value for name, value in os.environ.items() if name.startswith(("ACCELERATE_", "FSDP_", "DS_"))}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (FSDP, FSDP2(True, ("Block", "Other"))),
        ({**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false"}, FSDP2(False, ("Block", "Other"))),
        ({**FSDP, "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, FSDP2(True, ())),
        pytest.param(ZERO, ZeRO2, marks=has_deepspeed),
    ],
    ids=["no sharding", "FSDP2", "keeps gathered weights", "one unit", "ZeRO-2"],
)
def test_reading_a_launch_changes_no_environment_variable(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: Any
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = launch_variables()
    found = requested("cpu")
    assert launch_variables() == before
    if expected is ZeRO2:
        assert isinstance(found, ZeRO2) and found.settings["stage"] == 2
    else:
        assert found == expected


@has_deepspeed
@pytest.mark.parametrize(("own", "expected"), [(None, "cpu"), ("cuda", "cuda")])
def test_deepspeed_is_imported_for_cpus_unless_the_user_names_an_accelerator(own: str | None, expected: str) -> None:
    environment = {**os.environ, **ZERO} | ({"DS_ACCELERATOR": own} if own else {})
    # DeepSpeed keeps the accelerator of its first import, so that only another process can tell.
    program = (
        "import os; from sdpo.distributed.launch import requested; before = dict(os.environ); requested('cpu'); "
        "from deepspeed.accelerator import get_accelerator; "
        "assert 'DS_ACCELERATOR' not in os.environ or 'DS_ACCELERATOR' in before; print(get_accelerator()._name)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize("before", [None, "true"])
def test_every_rank_loads_all_weights_only_inside_the_context(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with pytest.raises(ValueError), loading_everywhere():
        assert os.environ[name] == "false"
        raise ValueError
    assert os.environ.get(name) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"dtype": "float16"}}, "float16"),
        ({"model": {"compile": True}}, "compile"),
        ({"model": {"quantize": "int8"}}, "quantize"),
        ({"lora": None, "train": {"optimizer": "adamw8bit"}}, "adamw8bit"),
    ],
)
def test_settings_that_cannot_be_combined_with_sharding_are_refused(settings: dict[str, Any], message: str) -> None:
    config = Config.load("emoji", **settings)
    with pytest.raises(UserError, match=message):
        check(FSDP2(), config, torch.device("cpu"))
    if message == "quantize":  # DeepSpeed does not touch frozen weights
        check(ZeRO2({}), config, torch.device("cpu"))
    else:
        with pytest.raises(UserError, match=message):
            check(ZeRO2({}), config, torch.device("cpu"))


def test_adamw8bit_is_allowed_where_its_state_is_not_split() -> None:
    config = Config.load("emoji", train={"optimizer": "adamw8bit"})
    check(FSDP2(), config, torch.device("cpu"))
    with pytest.raises(UserError, match="adamw8bit"):
        check(ZeRO2({}), config, torch.device("cpu"))
