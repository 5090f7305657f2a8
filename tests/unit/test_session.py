"""The session of a run: the order in which it writes, saves, logs and calls back, on every process alike."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdpo import Config
from sdpo import session as module
from sdpo.assembly.callbacks import Callback, Callbacks, RunState
from sdpo.assembly.micro_batches import MicroBatches
from sdpo.errors import DivergenceError, UserError
from sdpo.evaluation.record import Evaluation, ImageScores
from sdpo.loop.counters import Counters
from sdpo.loop.divergence import NotFiniteError
from sdpo.run.directory import RunDirectory
from sdpo.session import Session

Events = list[str]


class Ranks:
    """A process of two, whose collectives are written down; values that the main process broadcasts are handed on."""

    def __init__(self, events: Events, broadcasts: list[Any], is_main: bool) -> None:
        self.count, self.is_main = 2, is_main
        self._events, self._broadcasts = events, broadcasts

    def broadcast(self, value: Any) -> Any:
        self._events.append("broadcast")
        if not self.is_main:
            return self._broadcasts.pop(0)
        self._broadcasts.append(value)
        return value

    def barrier(self) -> None:
        self._events.append("barrier")


class Stateful:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Optimizer(Stateful):
    """One weight; collecting it takes all processes."""

    collective = True
    ema = None

    def __init__(self, events: Events) -> None:
        self.value = torch.zeros(1)
        self._events = events

    def weights(self) -> dict[str, Tensor]:
        self._events.append("weights")
        return {"w": self.value}

    def average(self) -> dict[str, Tensor]:
        return {}

    def take(self, weights: dict[str, Tensor], average: dict[str, Tensor]) -> None:
        self.value = weights["w"].clone()


class Evaluator:
    """Evaluates epochs 0, 2 and the last; the score is the weight's value less 10."""

    def __init__(self, events: Events, epochs: int, optimizer: Optimizer, diversity: dict[int, float]) -> None:
        self._events, self._epochs, self._optimizer, self._diversity = events, epochs, optimizer, diversity
        self.costs: list[dict[str, float]] = []

    def is_due(self, epoch: int) -> bool:
        return epoch in (0, self._epochs) or epoch % 2 == 0

    def __call__(
        self, epoch: int, drawing: Any, costs: dict[str, float], full: bool = False
    ) -> tuple[Evaluation, dict[int, Tensor]]:
        self._events.append(f"evaluate {epoch}{' in full' if full else ''} at {self._optimizer.value.item():g}")
        self.costs.append(costs)
        scores = ImageScores(["a"], [0], {"emoji_score": {1: np.array([self._optimizer.value.item() - 10.0])}})
        monitors = {"diversity": {1: self._diversity.get(epoch, 1.0)}}
        record = Evaluation(epoch, scores, costs=dict(costs), monitors=monitors, monitored=1)
        return record, {1: torch.zeros(1, 4, 4, 3, dtype=torch.uint8)}

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Trackers:
    """Trackers that write down what is asked of them."""

    events: Events

    def __init__(self, names: list[str], run_dir: Path, config: dict[str, Any]) -> None:
        self._run = RunDirectory(run_dir)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.events.append("trackers closed")

    def start(self) -> None:
        self.events.append(f"trackers started, configuration {'written' if self._run.is_run else 'missing'}")

    def log(self, row: dict[str, Any]) -> None:
        self.events.append(f"log {row['epoch']}")


@dataclasses.dataclass
class Notes(Callback):
    """Writes down what has been saved when it is called."""

    events: Events
    states: list[RunState] = dataclasses.field(default_factory=list)

    def _note(self, name: str, state: RunState) -> None:
        run = RunDirectory(state.run_dir)
        saved = len(run.metrics.read_text().splitlines()), sorted(p.name for p in run.checkpoints.glob("*"))
        evaluated = state.evaluation.epoch if state.evaluation is not None else None
        self.events.append(f"{name} {state.epoch}: {saved[0]} rows, checkpoints {saved[1]}, evaluation {evaluated}")
        self.states.append(state)

    def on_epoch_end(self, state: RunState) -> None:
        self._note("epoch end", state)

    def on_evaluate(self, state: RunState) -> None:
        self._note("evaluated", state)

    def on_end(self, state: RunState) -> None:
        self._note("end", state)


class Run:
    """A run of one weight, to which each epoch adds 1.

    Args:
        path: the run's directory.
        is_main: whether this is the main process.
        broadcasts: values that the main process has broadcast.
        diversity: the monitor by epoch.
        settings: overrides of the configuration.
    """

    def __init__(
        self,
        path: Path,
        is_main: bool = True,
        broadcasts: list[Any] | None = None,
        diversity: dict[int, float] | None = None,
        **settings: Any,
    ) -> None:
        path.mkdir(exist_ok=True)
        self.events = Trackers.events = Events()
        self.broadcasts: list[Any] = [] if broadcasts is None else broadcasts
        settings = {"epochs": 3, "evaluate": {"every": 2, "steps": [1]}, **settings}
        settings["checkpoint"] = {"keep_last": 9, **settings.get("checkpoint", {})}
        self.config = Config.load("emoji", **settings)
        self.optimizer = Optimizer(self.events)
        self.evaluator = Evaluator(self.events, self.config.epochs, self.optimizer, diversity or {})
        self.notes = Notes(self.events)
        parts: Any = SimpleNamespace(
            config=self.config,
            processes=Ranks(self.events, self.broadcasts, is_main),
            micro_batches=MicroBatches(1, 1),
            algorithm=SimpleNamespace(branches=2),
            callbacks=Callbacks([self.notes]),
            optimization=self.optimizer,
            evaluator=self.evaluator,
            normalizer=Stateful(),
            mix=Stateful(),
            precision=contextlib.nullcontext,
            drawing=lambda micro_batch: None,
            backbone=SimpleNamespace(device=torch.device("cpu"), save=self._save),
        )
        self.session = Session(parts, RunDirectory(path), self._locked())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.events.append("locked")
        try:
            yield
        finally:
            kept = sorted(p.name for p in self.session.run.checkpoints.glob("*"))
            self.events.append(f"unlocked, checkpoints {kept}")

    def _save(self, folder: Path, weights: dict[str, Tensor]) -> Path:
        self.events.append(f"result {weights['w'].item():g}")
        (folder / "lora").mkdir()
        return folder / "lora"

    def epoch(self) -> None:
        session, epoch = self.session, self.session.epoch + 1
        self.optimizer.value = self.optimizer.value + 1
        counters = dataclasses.replace(session.counters, images=session.counters.images + 10)
        row = {"epoch": epoch, **vars(counters)}
        if session._parts.evaluator.is_due(epoch):
            row |= session.evaluate(epoch, counters)
        session.save(epoch, row, counters)

    def train(self, before_epoch: Callable[[int], None] = lambda epoch: None) -> None:
        with self.session.running():
            self.session.start()
            while not self.session.is_over:
                before_epoch(self.session.epoch + 1)
                self.epoch()
            self.session.finish()

    def collectives(self) -> Events:
        """What all processes must do together."""
        return [e for e in self.events if e.startswith(("broadcast", "barrier", "weights", "evaluate "))]


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report is written, and trackers write into the events of the run that was made last."""
    monkeypatch.setattr(module, "write_report", lambda path: None)
    monkeypatch.setattr(module, "Trackers", Trackers)


def test_the_order_of_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train()
    assert run.events == [
        "locked",
        "broadcast",
        "barrier",
        "trackers started, configuration written",
        "evaluate 0 at 0",
        "evaluated 0: 0 rows, checkpoints [], evaluation 0",
        "weights",
        "log 1",
        "epoch end 1: 1 rows, checkpoints ['1'], evaluation 0",
        "evaluate 2 at 2",
        "weights",
        "log 2",
        "evaluated 2: 2 rows, checkpoints ['1', '2'], evaluation 2",
        "epoch end 2: 2 rows, checkpoints ['1', '2'], evaluation 2",
        "evaluate 3 at 3",
        "weights",
        "log 3",
        "evaluated 3: 3 rows, checkpoints ['1', '2', '3'], evaluation 3",
        "epoch end 3: 3 rows, checkpoints ['1', '2', '3'], evaluation 3",
        "weights",
        "result 3",
        "barrier",
        "end 3: 3 rows, checkpoints ['1', '2', '3'], evaluation 3",
        "trackers closed",
        "unlocked, checkpoints ['1', '2', '3']",
    ]
    assert [costs["images"] for costs in run.evaluator.costs] == [0, 20, 30], "an evaluation counts its own epoch"
    assert all("eval_gain" in s.metrics for s in run.notes.states if s.epoch in (0, 2) and "epoch" not in s.metrics)


STOP: dict[str, Any] = {
    "stop_when": [{"metric": "monitor/diversity/1", "below": 0.5}],
    "epochs": 6,
    "checkpoint": {"every": 5},
}


@pytest.mark.parametrize("settings", [{}, STOP])
def test_every_process_takes_part_in_the_same_collectives(tmp_path: Path, settings: dict[str, Any]) -> None:
    diversity = {4: 0.1}
    for epochs in (2, 6):  # a new run, which is then resumed
        given = {**settings, "epochs": epochs, "train": {"lr_schedule": "constant"}}
        main = Run(tmp_path, diversity=diversity, **given)
        main.train()
        other = Run(tmp_path, False, list(main.broadcasts), diversity, **given)
        other.train()
        assert other.collectives() == main.collectives()
        assert (other.session.epoch, other.session.counters) == (main.session.epoch, main.session.counters)
        assert not other.notes.states, "callbacks are called on the main process alone"


def test_a_rule_makes_the_best_checkpoint_the_result(tmp_path: Path) -> None:
    run = Run(tmp_path, diversity={4: 0.1}, **STOP)
    run.train()
    assert run.session.epoch == 4 and run.session.ended_early is not None
    assert run.events[-8:] == [
        "evaluate 2 in full at 2",
        "evaluated 2: 4 rows, checkpoints ['2', '4'], evaluation 2",
        "weights",
        "result 2",
        "barrier",
        "end 2: 4 rows, checkpoints ['2', '4'], evaluation 2",
        "trackers closed",
        "unlocked, checkpoints ['2', '4']",
    ]
    assert run.evaluator.costs[-1]["images"] == 20 and run.session.counters.images == 40
    assert json.loads(run.session.run.stopped.read_text())["result_epoch"] == 2
    assert json.loads((tmp_path / "lora" / "result.json").read_text()) == {"epoch": 2, "averaged": False}


def test_an_epoch_that_was_left_out_is_saved_while_the_directory_is_locked(tmp_path: Path) -> None:
    run = Run(tmp_path, checkpoint={"every": 2})

    def interrupt(epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="rerun the same command to resume after epoch 1"):
        run.train(interrupt)
    assert run.events[-2:] == ["trackers closed", "unlocked, checkpoints ['1']"]
    resumed = Run(tmp_path, checkpoint={"every": 2})
    resumed.train()
    assert resumed.session.first_epoch == 2 and resumed.session.counters.images == 30
    assert "evaluate 0 at 0" not in resumed.events and "result 3" in resumed.events


def test_an_interruption_before_the_first_epoch_says_so(tmp_path: Path) -> None:
    def interrupt(epoch: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="no epoch was completed"):
        Run(tmp_path).train(interrupt)


def test_an_epoch_that_lacks_a_rules_metric_is_saved_and_not_logged(tmp_path: Path) -> None:
    rule = [{"metric": "monitor/diversity/1", "below": 0.5}]
    run = Run(tmp_path, stop_when=rule)
    with run.session.running():
        run.session.start()
        run.epoch()
        with pytest.raises(UserError, match="no monitor/diversity/1"):
            run.session.save(2, {"epoch": 2, "eval/emoji_score/1": 0.0}, Counters())
    assert [e for e in run.events if e.startswith("log")] == ["log 1"]
    assert len(run.session.run.metrics.read_text().splitlines()) == 2
    assert (run.session.run.checkpoints / "2").is_dir()


def test_a_callback_that_fails_ends_the_run_after_its_epoch_is_saved(tmp_path: Path) -> None:
    run = Run(tmp_path, checkpoint={"every": 3})
    fail = run.notes.on_epoch_end

    def on_epoch_end(state: RunState) -> None:
        fail(state)
        raise ValueError("no")

    run.notes.on_epoch_end = on_epoch_end  # type: ignore[method-assign]
    with pytest.raises(UserError, match="Notes, on_epoch_end: ValueError: no. Epoch 1 is saved"):
        run.train()
    assert run.events[-1] == "unlocked, checkpoints ['1']"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "a file cannot be .*No space left.* rerun the command to resume"),
        (torch.OutOfMemoryError(""), "out of memory: OutOfMemoryError\nChange settings.*train.micro_batch .now 1"),
    ],
)
def test_errors_of_libraries_say_what_to_do(tmp_path: Path, error: Exception, words: str) -> None:
    def fail(epoch: int) -> None:
        raise error

    with pytest.raises(UserError, match=words):
        Run(tmp_path).train(fail)


def test_a_divergence_names_the_epoch_and_the_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for kept in ("No checkpoint had been written", "The checkpoint of epoch 1 is intact"):
        with pytest.raises(DivergenceError, match=f"epoch 2: train/loss is not finite. {kept}. Lower"):
            with run.session.explaining_divergence(2):
                raise NotFiniteError("train/loss")
        if run.session.epoch == 0:
            with run.session.running():
                run.session.start()
                run.epoch()
