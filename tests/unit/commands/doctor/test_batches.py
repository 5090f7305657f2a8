"""Numbers that do not go together are found."""

from __future__ import annotations

from collections.abc import Callable

from sdpo import Config
from sdpo.commands.doctor.batches import check_batches
from sdpo.prompts import load_prompts


def test_numbers_that_do_not_go_together(make_config: Callable[..., Config]) -> None:
    config = make_config(epochs=1, train={"batch_size": 8, "warmup_steps": 99}, advantage={"normalizer": "stepwise"})
    assert [(f.check, f.status) for f in check_batches(config, load_prompts("simple_animals"))] == [
        ("batches", "ok"), ("warm-up", "WARN"), ("advantages", "WARN"),
    ]  # fmt: skip
    assert [f.check for f in check_batches(make_config(), load_prompts(["cat", "dog"]))] == ["batches"]
