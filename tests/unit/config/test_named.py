"""Named objects of a configuration: names, the user's own classes with fields, what is recorded, what is rejected."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdpo import Config
from sdpo.config.differences import RESUMABLE, differences
from sdpo.config.named import build_named
from sdpo.errors import UserError
from sdpo.method.advantages import NORMALIZERS, Normalizer, PairNormalizer, StepwiseNormalizer
from sdpo.method.algorithms import DDPO
from sdpo.method.credit import CREDITS, Credit, FutureCredit, StepCredit
from sdpo.method.reward_plans import AllSteps, GroupAnchors

MODULE = """
from __future__ import annotations
import pathlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from sdpo.method.advantages import Normalizer
from sdpo.method.algorithms import SDPO, Algorithm
from sdpo.method.credit import Credit
from sdpo.method.reward_plans import AllSteps, RewardPlan
if TYPE_CHECKING:
    from torch import Tensor

@dataclass(frozen=True)
class Geometric(Credit):
    ratio: float = 0.5
    def __call__(self, dense, discount):
        return self.ratio * dense

class Plain(Credit):
    trains_last_step: ClassVar[bool] = False
    def __call__(self, dense, discount):
        return dense

@dataclass(frozen=True)
class Mine(Algorithm):
    '''Has fields of many kinds; its own credit rule is a default.'''
    credit: Credit = Geometric(0.25)
    beta: float = 1
    mode: Literal["soft", "hard"] = "soft"
    scales: tuple[float, ...] = (1.0, 2.0)
    weights: dict[str, float] = field(default_factory=dict)
    folder: pathlib.Path | None = None
    cache: Tensor | None = field(default=None, init=False)
    def __post_init__(self):
        super().__post_init__()
        if self.beta == 13:
            raise ValueError("algorithm.beta must not be 13")
        if self.beta == 14:
            raise RuntimeError()
    def loss(self, batch):
        raise NotImplementedError

class Undecorated(SDPO):
    gamma: float = 2.0

@dataclass(frozen=True)
class Needs(Mine):
    temperature: float = field(kw_only=True)

@dataclass(frozen=True)
class Odd(Mine):
    socket: Any = None
    other: Tensor = None

@dataclass(frozen=True)
class Unwritable(Mine):
    thing: Any = object()

class Abstract(Algorithm):
    pass

@dataclass(frozen=True)
class Ranks(Normalizer):
    compares_branches: ClassVar[bool] = True
    power: float = 1.0
    def update(self, prompts, returns):
        return returns

@dataclass(frozen=True)
class WithRanks(Mine):
    normalizer: ClassVar[type[Normalizer] | None] = Ranks

@dataclass
class Notify:
    channel: str
    every: int = 1

def function(): pass
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own", None)


def load(*overrides: str) -> Config:
    return Config.load("emoji", list(overrides))


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load(*overrides)
    return str(error.value)


# -- names -----------------------------------------------------------------------------------------------------------


def test_a_user_s_algorithm_has_its_own_fields_and_records_all_of_them() -> None:
    config = load("algorithm.beta=3", "algorithm=own:Mine", "algorithm.scales=[4]", "algorithm.folder=/a/b")
    assert config.algorithm == {
        "name": "own:Mine",
        "discount": 1.0,
        "reward_plan": "final",
        "branches": 2,
        "credit": {"name": "own:Geometric", "ratio": 0.25},
        "beta": 3.0,
        "mode": "soft",
        "scales": [4.0],
        "weights": {},
        "folder": "/a/b",
    }
    built = config.build_algorithm()
    assert (built.beta, built.scales, built.folder) == (3.0, (4.0,), Path("/a/b"))
    text = config.to_yaml()
    again = Config.parse(yaml.safe_load(text))
    assert again == config and again.to_yaml() == text and again.build_algorithm() == built


def test_a_credit_rule_and_a_plan_are_named_within_the_algorithm() -> None:
    config = load("algorithm.credit={name: own:Geometric, ratio: 0.1}", "algorithm.reward_plan=group_anchors")
    assert config.algorithm["credit"] == {"name": "own:Geometric", "ratio": 0.1}
    assert config.algorithm["reward_plan"] == "group_anchors"
    algorithm = config.build_algorithm()
    assert algorithm.credit.ratio == 0.1 and algorithm.reward_plan == GroupAnchors()
    assert Config.parse(yaml.safe_load(config.to_yaml())).build_algorithm() == algorithm
    by_parts = load("algorithm.credit.ratio=0.1", "algorithm.credit=own:Geometric")
    assert by_parts.algorithm["credit"] == config.algorithm["credit"]
    assert load("algorithm.credit=own:Plain").algorithm["credit"] == "own:Plain"


def test_built_in_names_are_plain_texts_in_every_form() -> None:
    for value in ("future", {"name": "future"}):
        config = Config.load("emoji", algorithm={"name": "ddpo", "credit": value, "reward_plan": {"name": "all"}})
        assert config.algorithm["credit"] == "future" and config.algorithm["reward_plan"] == "all"
        assert config.build_algorithm() == DDPO(credit=FutureCredit(), reward_plan=AllSteps())


def test_the_fields_of_a_built_in_normaliser_are_settings_of_its_section() -> None:
    short = Config.load("emoji", ["advantage={normalizer: {name: stepwise, buffer_size: 8}, min_count: 4}"])
    assert short.advantage.model_dump() == {"normalizer": "stepwise", "buffer_size": 8, "min_count": 4}
    assert short.build_normalizer() == StepwiseNormalizer(8, 4)
    assert load("advantage.normalizer={name: pair}").build_normalizer() == PairNormalizer()
    assert "'advantage.window'" in refused("advantage.normalizer={name: stepwise, window: 8}")


def test_a_user_s_normaliser_and_one_that_an_algorithm_brings() -> None:
    config = load("advantage.normalizer=own:Ranks", "advantage.normalizer.power=2")
    assert config.advantage.normalizer == {"name": "own:Ranks", "power": 2.0}
    assert config.build_normalizer().power == 2.0
    assert Config.parse(yaml.safe_load(config.to_yaml())) == config
    assert load("algorithm=own:WithRanks").advantage.normalizer == {"name": "own:Ranks", "power": 1.0}
    kept = load("algorithm=own:WithRanks", "advantage.normalizer={name: own:Ranks, power: 3}")
    assert kept.advantage.normalizer == {"name": "own:Ranks", "power": 3.0}
    one = ["algorithm={name: ddpo, branches: 1}", "advantage.normalizer=own:Ranks"]
    assert "advantage.normalizer=own:Ranks compares branches" in refused(*one)


def test_callbacks_are_classes_with_fields() -> None:
    config = load("callbacks=[{name: own:Notify, channel: news}]")
    assert config.callbacks == [{"name": "own:Notify", "channel": "news", "every": 1}]
    assert Config.parse(yaml.safe_load(config.to_yaml())) == config
    built = build_named(config.callbacks[0], {}, object, "callback")
    assert (built.channel, built.every) == ("news", 1)
    assert "callbacks" in RESUMABLE
    assert load().callbacks == []


# -- what is rejected ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["algorithm=sdop"],
            ["algorithm: there is no algorithm 'sdop' (did you mean 'sdpo'?)", "my_module:MyAlgorithm"],
        ),
        (["algorithm=nowhere:Mine"], ["algorithm: 'nowhere:Mine' cannot be imported (ModuleNotFoundError"]),
        (["algorithm=own:Missing"], ["cannot be imported (AttributeError"]),
        (["algorithm=own:function"], ["'own:function' is a function; name a class"]),
        (["algorithm=own:Ranks"], ["'own:Ranks' is not a subclass of sdpo.Algorithm"]),
        (["algorithm=own:Abstract"], ["own:Abstract cannot be built: TypeError", "loss"]),
        (["algorithm=[1]"], ["algorithm: expected a name, a dotted path", "got [1]"]),
        (["algorithm={name: {}}"], ["algorithm: expected a name"]),
        (["algorithm=own:Mine", "algorithm.bta=1"], ["'bta' of algorithm own:Mine (did you mean 'beta'?)"]),
        (["algorithm=own:Mine", "algorithm.cache=1"], ["unknown key 'cache'"]),
        (["algorithm=own:Mine", "algorithm.beta=x"], ["algorithm.beta: Input should be a valid number", "'x'"]),
        (["algorithm=own:Mine", "algorithm.beta=.nan"], ["algorithm.beta: must be a finite number"]),
        (["algorithm=own:Mine", "algorithm.scales=[1, .inf]"], ["algorithm.scales: must be a finite number"]),
        (["algorithm=own:Mine", "algorithm.weights={a: x}"], ["algorithm.weights.a: Input should be a valid"]),
        (["algorithm=own:Mine", "algorithm.beta=13"], ["config: algorithm.beta must not be 13"]),
        (["algorithm=own:Mine", "algorithm.beta=14"], ["own:Mine cannot be built: RuntimeError"]),
        (["algorithm=own:Undecorated", "algorithm.gamma=1"], ["'gamma'", "@dataclass(frozen=True)"]),
        (["algorithm=own:Needs"], ["algorithm own:Needs needs the field 'temperature'"]),
        (["algorithm=own:Odd"], ["algorithm.other: a configuration cannot hold the type", "field(init=False)"]),
        (["algorithm=own:Unwritable"], ["algorithm.thing: ", "cannot be written to config.yaml"]),
        (["algorithm.credit=futur"], ["algorithm.credit: there is no credit rule 'futur' (did you mean 'future'?)"]),
        (["algorithm.credit=own:Mine"], ["algorithm.credit: 'own:Mine' is not a subclass of sdpo.Credit"]),
        (["algorithm.credit={ratio: 1}"], ["algorithm.credit: expected a name", "got {'ratio': 1}"]),
        (["algorithm.credit={name: future, x: 1}"], ["algorithm.credit: unknown key 'x' of credit rule future"]),
        (
            ["algorithm.credit={name: own:Plain, x: 1}"],
            ["algorithm.credit: credit rule own:Plain has no fields, but x is given: decorate"],
        ),
        (
            ["algorithm.credit={name: own:Geometric, ratio: [1]}"],
            ["algorithm.credit.ratio: Input should be a valid number, got [1]"],
        ),
        (["algorithm.reward_plan=anchor"], ["algorithm.reward_plan: there is no reward plan 'anchor'", "'anchors'"]),
        (["advantage.normalizer=stepwize"], ["advantage.normalizer: there is no normaliser 'stepwize'", "'stepwise'"]),
        (["advantage.normalizer=[1]"], ["advantage.normalizer: expected a name"]),
        (
            ["callbacks=[notify]"],
            ["callbacks.0: there is no callback 'notify'. Give a dotted path", "my_module:MyCall"],
        ),
        (["callbacks=[own:Notify]"], ["callbacks.0: callback own:Notify needs the field 'channel'"]),
        (["callbacks=own:Notify"], ["callbacks: ", "valid list"]),
        (["algorithm.credit=own:Plain", "sample.num_steps=1"], ["algorithm.credit=own:Plain", "sample.num_steps=1"]),
    ],
)
def test_mistakes_are_named_with_their_place(overrides: list[str], words: list[str]) -> None:
    message = refused(*overrides)
    for word in words:
        assert word in message, message
    assert "validation error" not in message


def test_one_message_names_all_mistakes() -> None:
    message = refused("algorithm={name: own:Mine, beta: x, mode: loud}", "epochs=many")
    assert all(word in message for word in ("algorithm.beta", "algorithm.mode", "epochs"))
    assert len(message.splitlines()) == 3


def test_what_an_assembly_builds_is_refused_with_the_kind_of_object() -> None:
    with pytest.raises(UserError, match="credit rule: there is no credit rule 'x'"):
        build_named("x", CREDITS, Credit, "credit rule")  # type: ignore[type-abstract]
    assert build_named("step", CREDITS, Credit, "credit rule") == StepCredit()  # type: ignore[type-abstract]
    assert isinstance(build_named("pair", NORMALIZERS, Normalizer, "normaliser"), PairNormalizer)  # type: ignore[type-abstract]


# -- differences, and runs that are only used -------------------------------------------------------------------------


def test_objects_of_different_classes_differ_as_a_whole_and_of_one_class_by_field() -> None:
    def between(first: str, second: str) -> dict[str, tuple[Any, Any]]:
        one, other = (load(o).model_dump(mode="json") for o in (first, second))
        return differences(one, other, frozenset())

    half, tenth = (f"algorithm.credit={{name: own:Geometric, ratio: {ratio}}}" for ratio in (0.5, 0.1))
    assert between(half, tenth) == {"algorithm.credit.ratio": (0.5, 0.1)}
    full = {"name": "own:Geometric", "ratio": 0.5}
    assert between("algorithm.credit=future", half) == {"algorithm.credit": ("future", full)}
    ranks = {"name": "own:Ranks", "power": 1.0}
    assert between("epochs=40", "advantage.normalizer=own:Ranks") == {"advantage.normalizer": ("pair", ranks)}


def test_a_finished_run_is_read_without_importing_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    settings = ["algorithm=own:WithRanks", "callbacks=[{name: own:Notify, channel: x}]", "sample.eta=0.5"]
    file.write_text(load(*settings).to_yaml().replace("own", "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        Config.load(file)
    config = Config.of_run(file)
    assert config.algorithm["name"] == "nowhere:WithRanks" and config.sample.eta == 0.5
    assert config.advantage.normalizer == {"name": "nowhere:Ranks", "power": 1.0}
    file.write_text("epochs: 3\nalgorithm: ddpo\ntrain: {batch_sizes: 3}\n")
    with pytest.raises(UserError, match="unknown key 'train.batch_sizes'"):
        Config.of_run(file)
