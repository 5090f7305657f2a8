"""The peaks of a run's memory, term by term, and what a dry run says of them."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.command_line import Run, succeeded

from sdpo import Config
from sdpo.estimate.memory_peaks import MemoryPeaks, describe_memory, estimate_peaks


def peaks(preset: str, processes: int = 1, **values: Any) -> MemoryPeaks:
    found = estimate_peaks(Config.load(preset, **values), processes)
    assert found is not None
    return found


def test_every_term_of_sd_turbo() -> None:
    found = peaks("aesthetic-1gpu")
    assert found.parts == {
        "network": 2 * 865_910_724,
        "LoRA": 4 * 4 * 207_488,
        "text encoders": 2 * 340_387_840,
        "decoder": 2 * 83_653_863,
    }
    assert found.memory.training == 4 * 207_488 * (4 + 8)
    latent = 2 * 4 * 64 * 64 * 4  # of a pair, in bytes
    assert found.memory.trajectories == (128 * 51 + 2 * (3 * 50 + 1)) * latent
    assert found.activations == 2 * 660_000_000 and found.rewards == 1_715_000_000
    assert found.update == found.memory.total - found.parts["text encoders"] + 2 * found.activations
    assert found.decoding == 4 * 4 * 256 * 512 * 512 * 2
    assert found.start == found.memory.weights, "the rewards are offloaded"
    assert found.scoring == found.memory.total - found.parts["text encoders"] + found.rewards + found.decoding
    assert found.peak == found.scoring < 8e9


def test_micro_batch_average_and_processes() -> None:
    found = peaks("aesthetic-1gpu")
    more = peaks("aesthetic-1gpu", 2, train={"micro_batch": 4, "ema_decay": 0.9})
    assert more.update - more.memory.total == found.update - found.memory.total + 2 * found.activations
    assert more.memory.training == 4 * 207_488 * (4 + 8 + 4)


def test_all_weights_are_in_float32_with_a_copy() -> None:
    everything = peaks("aesthetic-1gpu", lora=None, model={"text_encoders": "cpu"})
    assert everything.memory.training == 865_910_724 * (4 + 8 + 4)
    assert everything.parts["network"] == 4 * 865_910_724


def test_every_reward_that_an_evaluation_asks_takes_its_memory() -> None:
    alone, beside = (peaks("pickscore", evaluate={"held_out": held}) for held in ([], ["aesthetic"]))
    assert beside.rewards - alone.rewards == 1_715_000_000 and beside.scoring - alone.scoring == 1_715_000_000


def test_a_network_is_quantised_on_its_way_to_the_device() -> None:
    found = [peaks("sdxl-turbo-pickscore", model={"quantize": how}) for how in (None, "int8", "nf4")]
    sizes = [f.parts["network"] for f in found]
    assert sizes[0] - sizes[1] == 2_232_647_680
    assert sizes[0] - sizes[2] == pytest.approx(2_232_647_680 * (2 - 0.5 - 1 / 16), abs=1)
    assert [found[0].start - f.start for f in found] == [sizes[0] - size for size in sizes]


def test_reward_gradients_keep_the_decoder_and_the_reward_for_one_image() -> None:
    policy, climbing = peaks("pickscore"), peaks("sd-turbo-pickscore-gradient")
    assert policy.climbing == 0 and climbing.climbing > 2_000_000_000
    assert climbing.peak < 16e9 and peaks("sdxl-turbo-pickscore-gradient").peak < 24e9
    more = peaks("sd-turbo-pickscore-gradient", scoring={"decode_batch": 2})
    assert more.climbing == 2 * climbing.climbing


def test_small_parts_are_in_megabytes() -> None:
    assert "LoRA 8.22 MB" in describe_memory(Config.load("emoji"))


def test_an_unknown_model_is_said_to_be_unknown(sdpo: Run) -> None:
    result = succeeded(sdpo("train", "emoji", "model.path=somebody/some-model", "--dry-run"))
    assert "# memory: not known for somebody/some-model" in result.stdout
