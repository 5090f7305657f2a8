"""Settings that a sharded launch cannot have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdpo import Config
from sdpo.distributed import launch as sharding
from sdpo.errors import UserError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"dtype": "float16"}}, "float16"),
        ({"model": {"compile": True}}, "compile"),
        ({"model": {"quantize": "int8"}}, "quantize"),
        ({"lora": None, "train": {"optimizer": "adamw8bit"}}, "adamw8bit"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(settings: dict[str, Any], message: str) -> None:
    config = Config.load("emoji", **settings)
    with pytest.raises(UserError, match=message):
        sharding.check(sharding.FSDP2(), config, torch.device("cpu"))
    if message == "quantize":  # DeepSpeed leaves frozen weights alone
        sharding.check(sharding.ZeRO2({}), config, torch.device("cpu"))
    else:
        with pytest.raises(UserError, match=message):
            sharding.check(sharding.ZeRO2({}), config, torch.device("cpu"))


def test_a_lora_may_have_the_small_optimizer_where_it_is_not_split() -> None:
    config = Config.load("emoji", train={"optimizer": "adamw8bit"})
    sharding.check(sharding.FSDP2(), config, torch.device("cpu"))
    with pytest.raises(UserError, match="adamw8bit"):
        sharding.check(sharding.ZeRO2({}), config, torch.device("cpu"))
