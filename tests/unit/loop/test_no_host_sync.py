"""In the loops over steps the host never waits for the device: no tensor becomes a Python number there."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.plane_model import Plane, optimize, sample
from helpers.step_loops import watch_step_loops
from helpers.updates import run_update, update_settings

import sdpo
from sdpo.loop.policy import Policy
from sdpo.loop.policy_update import PolicyUpdate
from sdpo.method.algorithms import POLICY_ALGORITHMS

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
    "method/credit/temporal.py": {"temporal_weights"},
    "method/denoisers/ddim.py": {"transition"},
    "method/denoisers/flow.py": {"transition"},
    "method/denoisers/consistency.py": {"transition"},
    "loop/divergence.py": {"add", "poison", "mark", "end_step"},
    "method/algorithms/sdpo.py": None,
    "method/algorithms/ddpo.py": None,
    "method/algorithms/d3po.py": None,
    "method/algorithms/rebel.py": None,
}  # fmt: skip


@pytest.mark.parametrize("place", IN_THE_LOOPS)
def test_nothing_in_the_loops_asks_for_a_number(place: str) -> None:
    wanted = IN_THE_LOOPS[place]
    tree = ast.parse((ROOT / place).read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and (wanted is None or n.name in wanted)]
    assert functions if wanted is None else {f.name for f in functions} == wanted, "a function has another name now"
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


@pytest.mark.parametrize("algorithm", POLICY_ALGORITHMS)
def test_the_loops_run_without_a_tensor_being_read(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, entered = Policy(Plane()), watch_step_loops(monkeypatch, forbidden)
    trajectories = sample(policy, 3, ["x"] * 4, micro_batch=2)
    assert entered == ["sampling"] * 6
    learner = POLICY_ALGORITHMS[algorithm](branches=2)
    settings = update_settings(batch_size=4, kl_weight=0.1, whole_trajectories=learner.takes_trajectories)
    update = PolicyUpdate(policy, learner, settings, optimize(policy, torch.optim.AdamW))
    run_update(update, trajectories, torch.randn(trajectories.log_prob.shape), micro_batch=2)
    assert set(entered[6:]) == {"update"}


@pytest.mark.parametrize("read", [lambda x: x.item(), float, bool, int, lambda x: x.tolist(), lambda x: x.cpu()])
def test_the_watch_sees_a_tensor_that_is_read(read: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(AssertionError, match="read by the host"), forbidden():
        read(torch.ones(1))
