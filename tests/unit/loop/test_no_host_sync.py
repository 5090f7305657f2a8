"""In the loops over steps the host never waits for the device: no tensor becomes a Python number there."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.plane_model import Plane, optimize
from helpers.updates import run_update, update_settings

import sdpo
from sdpo.loop import rollout as sampler
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.policy_update import PolicyUpdate
from sdpo.method.algorithms import ALGORITHMS
from sdpo.method.types import Trajectories
from sdpo.prompts import Prompt

ROOT = Path(sdpo.__file__).parent
WAITING = ["item", "cpu", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"]
# Everything that runs once a step; None is all of a file.
IN_THE_LOOPS: dict[str, set[str] | None] = {
    "loop/rollout.py": {"_walk"},
    "loop/policy.py": {"transition", "take", "to_device", "autocast"},
    "loop/policy_update.py": {"_accumulate", "_step_gradients", "_trajectory_gradients"},
    "loop/step_batch.py": None,
    "loop/shared_first_step.py": {"network_rows"},
    "loop/optimizer.py": {"backward", "step", "_advance", "_reduce", "_average_gradients", "_average"},
    "method/gaussian.py": None,
    "method/credit.py": {"temporal_weights"},
    "method/denoisers/ddim.py": {"transition"},
    "method/denoisers/flow.py": {"transition"},
    "method/denoisers/consistency.py": {"transition"},
    "loop/divergence.py": {"add", "poison", "mark", "end_step"},
    "method/algorithms/sdpo.py": None,
    "method/algorithms/ddpo.py": None,
    "method/algorithms/grpo.py": None,
    "method/algorithms/d3po.py": None,
    "method/algorithms/rebel.py": None,
}  # fmt: skip


@pytest.mark.parametrize("place", IN_THE_LOOPS)
def test_nothing_in_the_loops_asks_for_a_number(place: str) -> None:
    wanted = IN_THE_LOOPS[place]
    tree = ast.parse((ROOT / place).read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and (wanted is None or n.name in wanted)]
    assert wanted is None or {f.name for f in functions} == wanted
    for function in functions:
        called = {
            n.func.attr for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
        }
        assert not called & set(WAITING), f"{place}: {function.name}"


@contextlib.contextmanager
def forbidden() -> Iterator[None]:
    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise AssertionError("a tensor was read by the host")

    with pytest.MonkeyPatch.context() as patch:
        for name in WAITING:
            patch.setattr(torch.Tensor, name, fail)
        yield


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_loops_run_without_a_tensor_being_read(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(Plane())
    denoiser, embeddings = policy.backbone.denoiser(3, 1.0), PromptEmbeddings(policy.backbone)
    walk, accumulate = sampler._walk, PolicyUpdate._accumulate

    def watched_walk(*arguments: Any) -> Iterator[Any]:
        steps = walk(*arguments)
        for _ in range(denoiser.num_steps):
            with forbidden():
                step = next(steps)
            yield step

    def watched_accumulate(*arguments: Any) -> Any:
        with forbidden():
            return accumulate(*arguments)

    monkeypatch.setattr(sampler, "_walk", watched_walk)
    monkeypatch.setattr(PolicyUpdate, "_accumulate", watched_accumulate)
    parts = sampler.rollout(policy, denoiser, embeddings, [Prompt("x")] * 4, range(4), seed=0, epoch=1, branches=2,
                            micro_batch=2)  # fmt: skip
    trajectories = Trajectories.collect(parts, 4)
    learner = ALGORITHMS[algorithm](branches=2)
    settings = update_settings(batch_size=4, kl_weight=0.1, whole_trajectories=learner.takes_trajectories)
    update = PolicyUpdate(policy, learner, settings, optimize(policy, torch.optim.AdamW))
    run_update(update, trajectories, torch.randn(trajectories.log_prob.shape), micro_batch=2)
    with pytest.raises(AssertionError, match="read by the host"), forbidden():
        torch.ones(1).item()
