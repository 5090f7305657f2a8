"""The memory that a process holds and the size of a checkpoint, counted by hand."""

from __future__ import annotations

from sdpo import Config
from sdpo.estimate.memory import checkpoint_bytes, estimate_memory


def test_the_estimate_by_hand() -> None:
    sample, train = {"num_steps": 3, "prompts_per_epoch": 8}, {"batch_size": 4, "ema_decay": 0.9}
    config = Config.load("emoji", sample=sample, train=train, lora=None)
    found = estimate_memory(config, weight_bytes=7, trained=10, latent_elements=5, micro_batch=2, processes=2)
    # Gradient, two moments, average and the base model's copy; 4 groups of 2, and 2 while sampled, of float32.
    assert (found.weights, found.training) == (7, 10 * (4 + 8 + 4 + 4))
    assert found.trajectories == 4 * 5 * 2 * (4 * 4 + 2 * 10)
    assert found.total == found.weights + found.training + found.trajectories
    assert checkpoint_bytes(config, 10) == 10 * (4 + 4 + 8)
