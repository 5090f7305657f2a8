"""A pool of reward actors on a local Ray cluster: order, crashes, failures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import import_path
from helpers.reward_calls import ask

from sdpo.errors import RewardError, UserError
from sdpo.rewards import load_reward

ray = pytest.importorskip("ray", reason="needs the extra ray")

MODULE = """
import os, pathlib
class Red:
    def __init__(self, marks="", strength=1.0):
        self.marks, self.strength = marks, strength
    def __call__(self, images, prompts, metadata):
        if "die once" in prompts:
            mark = pathlib.Path(self.marks) / "died"
            if not mark.exists():
                mark.touch()
                os._exit(1)
        if "die" in prompts:
            os._exit(1)
        if "fail" in prompts:
            raise ValueError("not this one")
        if "nan" in prompts:
            return [float("nan")] * len(prompts)
        return self.strength * images[:, 0].mean((1, 2))
class Broken:
    def __init__(self):
        raise OSError("no weights here")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "red_for_ray.py").write_text(MODULE)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
             runtime_env={"env_vars": {"PYTHONPATH": import_path(folder), "OMP_NUM_THREADS": "1"}})  # fmt: skip
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    ray.shutdown()


def pool(folder: Path, **options: Any) -> Any:
    given = {"reward": "red_for_ray:Red", "options": {"marks": str(folder)}, "num_cpus": 0.5, "batch_size": 2}
    return load_reward("ray", options=given | options)


def test_scores_come_back_in_order_and_actors_survive_a_crash(cluster: Path) -> None:
    reward = pool(cluster)
    assert reward.remote
    expected = pytest.approx([i / 255 for i in range(11)])
    assert ask(reward, ["x"] * 11).tolist() == expected
    assert not (cluster / "died").exists()
    assert ask(reward, [*["x"] * 5, "die once", *["x"] * 5]).tolist() == expected
    assert (cluster / "died").exists(), "no actor crashed"
    assert ask(reward, ["x"] * 11).tolist() == expected
    with pytest.raises(RewardError, match="ValueError.*not this one"):
        ask(reward, ["x", "x", "fail"])
    with pytest.raises(RewardError, match="nan"):
        ask(reward, ["nan"])
    assert ask(reward, ["x"] * 3).tolist() == pytest.approx([0, 1 / 255, 2 / 255])


def test_an_actor_that_keeps_dying_is_an_error(cluster: Path) -> None:
    with pytest.raises(RewardError, match="an actor failed.*[Aa]ctor"):
        ask(pool(cluster, actors=1, restarts=1), ["die"])


def test_pools_that_cannot_be(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no weights here"):
        pool(cluster, reward="red_for_ray:Broken", options={}, restarts=0)
    with pytest.raises(UserError, match="reward_options.ray.reward"):
        load_reward("ray")
    with pytest.raises(UserError, match="at least 1"):
        pool(cluster, actors=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'sdpo\[ray\]'"):
        pool(cluster)
