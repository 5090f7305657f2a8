"""Every array of the reference's golden file, from the library's public functions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.plane_model import ALPHAS
from torch import Tensor

from sdpo.method.advantages import StepwiseNormalizer
from sdpo.method.algorithms import sdpo_loss
from sdpo.method.credit import discounted_returns
from sdpo.method.denoisers import DDIM
from sdpo.method.dense_rewards import anchor_steps, interpolate, query_steps, similarities, similarity
from sdpo.method.gaussian import log_prob

GOLDEN = np.load(Path(__file__).parent / "sdpo_steps.npz")
STEPS = [1, 2, 4, 8, 50]
OBJECTIVES = sorted({k.rsplit(".", 1)[0] for k in GOLDEN.files if k.startswith("objective.")})


def golden(key: str) -> Tensor:
    return torch.from_numpy(GOLDEN[key])


def assert_golden(actual: Tensor, key: str, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual, golden(key), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_step_and_log_prob(prediction: str, steps: int) -> None:
    key = f"ddim.{prediction}.{steps}."
    ddim = DDIM(ALPHAS, steps, prediction)  # type: ignore[arg-type]
    assert torch.equal(ddim.timesteps, golden(key + "timesteps"))
    index = (ddim.timesteps[None] == golden(key + "t")[:, None]).long().argmax(1)
    step = ddim.transition(golden(key + "x_t"), golden(key + "model_output"), index)
    # x̂ has elements near 0, where a relative tolerance alone asks for more digits than float32 has.
    assert_golden(step.x0, key + "x0_hat", atol=1e-4)
    assert_golden(log_prob(golden(key + "x_prev"), step.mean, step.std), key + "log_prob")


@pytest.mark.parametrize("steps", STEPS)
def test_dense_rewards(steps: int) -> None:
    key = f"dense.{steps}."
    x0, every = golden(key + "x0_hat"), golden(key + "reward_of_every_step")
    anchor = anchor_steps(x0)
    assert torch.equal(anchor, golden(key + "anchor_step"))
    queried = query_steps(x0)
    for name, column in (("first", 0), ("last", 1), ("anchor", 2)):
        assert_golden(similarity(x0, queried[:, column]), key + f"sim_{name}", atol=1e-6)
    dense = interpolate(similarities(x0, queried), queried, every.gather(1, queried))
    assert_golden(dense, key + "dense_reward", atol=1e-6)


@pytest.mark.parametrize("steps", STEPS)
def test_returns_and_advantages(steps: int) -> None:
    normalizer = StepwiseNormalizer(buffer_size=32, min_count=16)
    for update in range(6):
        key = f"advantage.{steps}.{update}."
        returns = discounted_returns(golden(key + "reward"), 0.99)
        assert_golden(returns, key + "return", atol=1e-6)
        advantages = normalizer.update(list(GOLDEN[key + "prompt"]), returns[:, None])[:, 0]
        assert_golden(advantages, key + "advantage", atol=1e-5)


@pytest.mark.parametrize("key", OBJECTIVES)
def test_objective_and_gradients(key: str) -> None:
    def pair(name: str) -> Tensor:
        return torch.stack([golden(f"{key}.{name}_a"), golden(f"{key}.{name}_b")], dim=1)

    settings = dict(part.split("=") for part in key.replace("objective.", "").split(".", 1)[1].split(".clip=")[:1])
    scale, clip = float(settings["eta"]), float(key.rsplit("clip=", 1)[1])
    new = pair("log_prob").requires_grad_()
    output = sdpo_loss(
        new,
        pair("old_log_prob"),
        pair("advantage"),
        golden(f"{key}.step_index"),
        torch.ones(len(new)),
        clip_range=clip,
        advantage_clip=5.0,
        temporal_decay=0.99,
        log_ratio_scale=scale,
    )
    output.loss.backward()
    assert new.grad is not None
    assert_golden(output.loss.detach(), f"{key}.loss")
    assert_golden(output.metrics["clip_fraction"], f"{key}.clip_fraction", atol=1e-6)
    assert_golden(new.grad[:, 0], f"{key}.grad_a", atol=1e-8)
    assert_golden(new.grad[:, 1], f"{key}.grad_b", atol=1e-8)
