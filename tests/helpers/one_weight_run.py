"""A run of one weight: the session's parts write down what is asked of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdpo import Config
from sdpo.assembly.callbacks import Callback, Callbacks, RunState
from sdpo.assembly.micro_batches import MicroBatches
from sdpo.evaluation.conditions import Conditions
from sdpo.evaluation.evaluate import image_seeds
from sdpo.evaluation.record import Evaluation, ImageScores
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

    starts_from_lora = False
    texts = ("a",)

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
        return self._evaluate(epoch, drawing, costs)

    def base(self, drawing: Any, costs: dict[str, float]) -> tuple[Evaluation, dict[int, Tensor]]:
        self._events.append("evaluate the base model")
        return self._evaluate(0, drawing, costs)

    def _evaluate(self, epoch: int, drawing: Any, costs: dict[str, float]) -> tuple[Evaluation, dict[int, Tensor]]:
        values = np.array([self._optimizer.value.item() - 10.0])
        scores = ImageScores(["a"], image_seeds(["a"]), {"emoji_score": {1: values}})
        monitors = {"diversity": {1: self._diversity.get(epoch, 1.0)}}
        conditions = drawing.conditions(drawing.sampler)
        record = Evaluation(epoch, scores, None, dict(costs), monitors=monitors, monitored=2, conditions=conditions)
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
        eta: the sampler that is recorded with the evaluations; None records no conditions, as an earlier version.
        settings: overrides of the configuration.
    """

    def __init__(
        self,
        path: Path,
        is_main: bool = True,
        broadcasts: list[Any] | None = None,
        diversity: dict[int, float] | None = None,
        eta: float | None = None,
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
            gradient=None,
            mix=Stateful(),
            precision=contextlib.nullcontext,
            drawing=lambda micro_batch: SimpleNamespace(sampler=eta, conditions=_conditions),
            backbone=SimpleNamespace(device=torch.device("cpu"), save=self._save, start_digest=lambda: None),
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
        """The events in which all processes must take part together."""
        return [e for e in self.events if e.startswith(("broadcast", "barrier", "weights", "evaluate "))]


def _conditions(eta: float | None) -> Conditions | None:
    return None if eta is None else Conditions("training", eta, None, {}, 1.0, [4, 4], "float32", {}, {})
