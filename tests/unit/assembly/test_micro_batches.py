"""The choice of micro-batches on a CPU: settings, sizes, and equal ones in half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.one_process import OneProcess
from helpers.plane_model import Plane

from sdpo import Config
from sdpo.assembly.micro_batches import MicroBatches, choose_micro_batches, decode_batch
from sdpo.loop.policy import Policy, PromptEmbeddings


class Half(OneProcess):
    """One of two processes, to which the main one hands its choice."""

    count = 2

    def __init__(self, is_main: bool = True, chosen: dict[str, int] | None = None) -> None:
        super().__init__(is_main)
        self._chosen = chosen

    def broadcast(self, value: Any) -> Any:
        return self._chosen or value


def choose(
    sample: Any = "auto",
    update: Any = "auto",
    dtype: torch.dtype = torch.float32,
    latent: tuple[int, int, int] = (2, 1, 1),
    processes: Any = None,
) -> MicroBatches:
    """For two processes that have 12 groups an epoch each, and 8 a batch."""
    settings: dict[str, Any] = {
        "sample": {"prompts_per_epoch": 48, "micro_batch": sample},
        "train": {"batch_size": 16, "micro_batch": update},
    }
    backbone = Plane()
    policy, denoiser = Policy(backbone, dtype=dtype), backbone.denoiser(2, 1.0)
    backbone.latent_shape = latent
    embeddings = PromptEmbeddings(backbone, ["a"])
    config = Config.load("emoji", algorithm={"branches": 2}, **settings)
    return choose_micro_batches(config, policy, denoiser, embeddings, processes or Half())


def test_settings_are_taken_up_to_a_process_share() -> None:
    assert choose(3, 5) == MicroBatches(3, 5)
    assert choose(99, 99) == MicroBatches(24, 8)


def test_auto_goes_by_the_size_of_the_latents() -> None:
    assert choose() == MicroBatches(24, 8)
    large = (2, 64, 64)  # 12 samples, so 6 groups a call
    assert choose(latent=large) == MicroBatches(6, 4)
    assert choose(update=2, latent=large) == MicroBatches(6, 2)


def test_half_precision_has_equal_ones_and_the_main_process_warns_of_others(caplog: pytest.LogCaptureFixture) -> None:
    assert choose(dtype=torch.bfloat16, latent=(2, 64, 64)) == MicroBatches(4, 4)
    assert choose(2, 2, torch.bfloat16) == MicroBatches(2, 2)
    assert not caplog.messages
    assert choose(3, 5, torch.bfloat16, processes=Half(is_main=False)) == MicroBatches(3, 5)
    assert not caplog.messages
    assert choose(3, 5, torch.bfloat16) == MicroBatches(3, 5)
    assert len(caplog.messages) == 1 and "set both to the same value" in caplog.messages[0]


def test_all_processes_take_the_choice_of_the_main_one() -> None:
    other = Half(is_main=False, chosen={"sample": 1, "update": 2})
    assert choose(processes=other) == MicroBatches(1, 2)


def test_the_decoder_gets_more_of_small_images() -> None:
    config = Config.load("emoji")
    assert [decode_batch(config, (side, side)) for side in (64, 512, 1024, 4096)] == [32, 8, 2, 1]
    assert decode_batch(Config.load("emoji", scoring={"decode_batch": 5}), (4096, 4096)) == 5
