"""The user's own objects, described in a configuration; a reward by a name that means no other."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from sdpo import Config
from sdpo.assembly.model import IN_PYTHON
from sdpo.assembly.user_objects import Given
from sdpo.errors import UserError
from sdpo.prompts import load_prompts
from sdpo.rewards.registry import REWARDS
from sdpo.system.dotted_path import resolve

CODE = """
def colorfulness(images, prompts, metadata): return [0.0] * len(prompts)
def redness(images, prompts, metadata): return [0.0] * len(prompts)
class Judge:
    def score(self, images, prompts, metadata): return [0.0] * len(prompts)
    def __call__(self, images, prompts, metadata): return self.score(images, prompts, metadata)
    @staticmethod
    def http(images, prompts, metadata): return [0.0] * len(prompts)
nameless = lambda images, prompts, metadata: [0.0] * len(prompts)
"""


def brightness(images: torch.Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> torch.Tensor:
    return images.mean((1, 2, 3))


def test_nothing_given_changes_nothing() -> None:
    config = Config.load("emoji", prompts={"unseen": ["a cow"]}, reward_options={"emoji_judge": {}})
    assert Given().describe(config) == config and Given().rewards == {}


def test_a_reward_replaces_the_rewards_and_their_options() -> None:
    config = Config.load(
        "emoji",
        rewards={"clipscore": 0.5, "jpeg_compressibility": 2.0},
        evaluate={"held_out": ["aesthetic"]},
        reward_options={"clipscore": {"a": 1}, "aesthetic": {"b": 2}},
    )
    config.rewards.pop("emoji_score", None)
    described = Given(reward=brightness).describe(config)
    assert described.rewards == {"brightness": 1.0}
    assert described.reward_options == {"aesthetic": {"b": 2}}, "options of rewards that are still used stay"
    assert Config.parse(described.model_dump(mode="json")) == described, "a resumed run reads it"
    assert Given(reward=brightness).rewards == {"brightness": brightness}


def test_prompts_replace_training_and_unseen_prompts() -> None:
    config = Config.load("emoji", prompts={"unseen": ["a cow"]})
    described = Given(prompts=("a moon", "a sun")).describe(config)
    assert described.prompts.train == ["a moon", "a sun"] and described.prompts.unseen is None


def test_a_pipeline_says_where_it_came_from_and_its_precision() -> None:
    network = SimpleNamespace(dtype=torch.bfloat16)
    named = SimpleNamespace(transformer=network, name_or_path="some/model")
    described = Given(pipeline=named).describe(Config.load("emoji")).model
    assert (described.path, described.dtype) == ("some/model", "bfloat16")
    assert Given(pipeline=SimpleNamespace(unet=network)).describe(Config.load("emoji")).model.path == IN_PYTHON
    with pytest.raises(UserError, match="float64: load it in one of"):
        Given(pipeline=SimpleNamespace(unet=SimpleNamespace(dtype=torch.float64))).describe(Config.load("emoji"))


def test_the_result_is_validated() -> None:
    with pytest.raises(UserError, match="held_out names brightness"):
        Given(reward=brightness).describe(Config.load("emoji", evaluate={"held_out": ["brightness"]}))


# -- the names of rewards ---------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "my_rewards.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    import my_rewards  # type: ignore[import-not-found]

    yield my_rewards
    del sys.modules["my_rewards"]


def config(tmp_path: Path, **values: Any) -> Config:
    return Config.load("emoji", output_dir=str(tmp_path / "run"), **values)


def recorded(tmp_path: Path, reward: Any) -> str:
    given = Given(reward=reward)
    described = given.describe(config(tmp_path))
    (name,) = described.rewards
    assert given.rewards == {name: reward}
    return name


def test_a_function_that_can_be_imported_has_its_dotted_path_where_its_name_is_a_built_in(
    tmp_path: Path, mine: ModuleType
) -> None:
    for reward, name in ((mine.colorfulness, "my_rewards:colorfulness"), (mine.Judge.http, "my_rewards:Judge.http")):
        assert recorded(tmp_path, reward) == name
        assert resolve(name, REWARDS, "reward", "my_module:f") is reward
    assert recorded(tmp_path, mine.redness) == "redness"


def test_a_function_that_cannot_be_imported_is_never_taken_for_a_built_in(tmp_path: Path, mine: ModuleType) -> None:
    def colorfulness(images: Any, prompts: Any, metadata: Any) -> Any: ...
    def redness(images: Any, prompts: Any, metadata: Any) -> Any: ...

    assert recorded(tmp_path, colorfulness) == "(in Python) colorfulness"
    assert recorded(tmp_path, redness) == "redness"
    assert recorded(tmp_path, mine.Judge()) == "Judge"
    assert recorded(tmp_path, mine.Judge().score) == "score"
    assert recorded(tmp_path, mine.nameless) == "<lambda>"
    assert recorded(tmp_path, functools.partial(redness)) == "partial"
    colorfulness.__name__ = "os.path"
    assert recorded(tmp_path, colorfulness) == "(in Python) os.path"
    mine.colorfulness.__module__ = "__main__"
    assert recorded(tmp_path, mine.colorfulness) == "(in Python) colorfulness"


@pytest.mark.parametrize("reward", ["colorfulness", {"colorfulness": 1.0}, 3, type("Judge", (), {})])
def test_what_is_no_reward_is_refused(tmp_path: Path, reward: Any) -> None:
    with pytest.raises(UserError, match="not a function or an object to call"):
        Given(reward=reward).describe(config(tmp_path))


def test_a_reward_that_counts_as_false_is_used(tmp_path: Path) -> None:
    from sdpo.assembly.rewards import load_rewards

    class Empty(torch.nn.ModuleList):
        def __call__(self, images: Any, prompts: Any, metadata: Any) -> Any: ...

    given = Given(reward=Empty())
    described = given.describe(config(tmp_path))
    found = load_rewards(described, described.rewards, torch.device("cpu"), given.rewards)
    assert [placed.reward for placed in found.values()] == [given.reward]


# -- prompts ---------------------------------------------------------------------------------------------------------


def trained_on(tmp_path: Path, prompts: Any) -> list[str]:
    described = Given(prompts=prompts).describe(config(tmp_path))
    return [prompt.text for prompt in load_prompts(described.prompts.train)]


def test_a_string_names_a_set_or_a_file(tmp_path: Path) -> None:
    assert trained_on(tmp_path, "simple_animals") == [p.text for p in load_prompts("simple_animals")]
    (tmp_path / "mine.txt").write_text("a moon\na sun\n")
    for source in (str(tmp_path / "mine.txt"), tmp_path / "mine.txt"):
        assert trained_on(tmp_path, source) == ["a moon", "a sun"]
    with pytest.raises(UserError, match="no file 'a moon'.* or a list of prompts"):
        trained_on(tmp_path, "a moon")


def test_lists_and_sections_are_as_in_the_configuration(tmp_path: Path) -> None:
    for prompts in (["a moon"], ("a moon",), [{"prompt": "a moon", "n": 1}], (p for p in ["a moon"])):
        assert trained_on(tmp_path, prompts) == ["a moon"]
    section = Given(prompts={"train": ["a moon"], "unseen": "simple_animals"}).describe(config(tmp_path)).prompts
    assert section.train == ["a moon"] and section.unseen == "simple_animals"
    assert Given(prompts=["a moon"]).describe(config(tmp_path)).prompts.unseen is None


@pytest.mark.parametrize("prompts", [{"cat", "dog"}, 5, b"cat", {"prompt": "cat"}, {"trian": ["cat"]}])
def test_what_are_no_prompts_is_refused(tmp_path: Path, prompts: Any) -> None:
    with pytest.raises(UserError):
        trained_on(tmp_path, prompts)
