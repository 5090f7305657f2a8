"""The state of a run and its directory: start or resume, evaluate, save, rescue, finish."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from sdpo.assembly import Parts
from sdpo.assembly.callbacks import RunState
from sdpo.assembly.snapshot import Spent, restore_snapshot, take_snapshot
from sdpo.config.differences import check_same_run
from sdpo.distributed.processes import explaining_lost_process
from sdpo.errors import DivergenceError, UserError, cause
from sdpo.estimate.memory import memory_knobs
from sdpo.evaluation.costs import EvaluationCosts
from sdpo.evaluation.evaluate import Drawing
from sdpo.evaluation.history import EvaluationHistory
from sdpo.evaluation.record import discard_evaluations_after
from sdpo.evaluation.stopping import Stop, StoppingRules
from sdpo.loop.counters import Counters
from sdpo.loop.divergence import NotFiniteError
from sdpo.report import write_report
from sdpo.run.checkpoint import Checkpoint, CheckpointStore
from sdpo.run.directory import RunDirectory
from sdpo.run.environment import write_environment
from sdpo.run.metrics import MetricsFile
from sdpo.run.ownership import holds_results
from sdpo.run.result import RunResult, write_result
from sdpo.run.trackers import Trackers
from sdpo.system.durable import WRITE_ERRORS, write_whole
from sdpo.system.interrupt import Interruptions, Terminated
from sdpo.system.log import logger


class Session:
    """The progress of a run, and the files in its directory.

    All processes call the methods alike; the main process alone writes files and calls callbacks.

    Args:
        parts: the parts of the run.
        run: the run's directory, which exists.
        lock: a context in which no other process writes to the directory.

    Attributes:
        run: the run's directory.
        epoch: the last epoch that has ended; 0 before the first.
        first_epoch: the first epoch that this session trains; later than 1 after a resume.
        counters: the costs of the run so far.
        micro_batches: groups a network call; a resumed run keeps the numbers that `auto` found at its start.
        ended_early: a sentence that says why a stopping rule ended the run, and which epoch the result is from; None if
            no rule did.
    """

    def __init__(self, parts: Parts, run: RunDirectory, lock: AbstractContextManager[Any]) -> None:
        config, is_main = parts.config, parts.processes.is_main
        self.run = run
        self.epoch = 0
        self.first_epoch = 1
        self.counters = Counters()
        self.micro_batches = parts.micro_batches
        self.ended_early: str | None = None
        self._parts = parts
        self._config = config
        self._is_main = is_main
        self._lock = lock
        self._store = CheckpointStore(run.checkpoints, config.checkpoint.keep_last, config.checkpoint.keep_best)
        self._metrics = MetricsFile(run.metrics)
        self._evaluations = EvaluationHistory(run, config.rewards, config.evaluate.monitored, is_main)
        self._evaluation_costs = EvaluationCosts()
        self._rules = StoppingRules(config.stop_when)
        self._trackers = Trackers(config.trackers if is_main else [], run.path, config.model_dump())
        self._unsaved: Checkpoint | None = None  # the last epoch's, where `checkpoint.every` leaves it out

    @property
    def evaluation_costs(self) -> Counters:
        """The costs of the run's evaluations so far."""
        return self._evaluation_costs.total

    @property
    def is_over(self) -> bool:
        """Whether the last epoch has ended, or a stopping rule has ended the run."""
        return self.epoch >= self._config.epochs or self._rules.stop is not None

    # -- start or resume -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self) -> Iterator[Interruptions]:
        """A context in which the directory is locked and signals are handled; an exception first saves the last epoch.

        Raises:
            UserError: in place of the errors of libraries, if memory or the disk is full, or another process has ended.
            Terminated: if SIGTERM arrives.
        """
        with (
            self._lock,  # the outermost, so that the directory is still locked when the last epoch is saved
            Interruptions(self._save_unsaved) as interruptions,
            self._explaining_errors(),
            self._rescuing(interruptions),
            self._trackers,
        ):
            yield interruptions

    def start(self) -> None:
        """Resume from the newest undamaged checkpoint if there is one; else evaluate the base model.

        Raises:
            UserError: if the directory holds another run, all checkpoints are damaged, a tracker cannot be started, or
                the evaluation fails.
        """
        self._resume()
        self._trackers.start()
        if self.epoch == 0:
            if self._parts.evaluator.starts_from_lora:
                self._evaluate_base()
            metrics = self.evaluate(0, self.counters)
            self._rules.start(self._evaluations.base_metrics(), [])
            self._notify(self._parts.callbacks.on_evaluate, 0, metrics)

    def _renew_base(self) -> None:
        """Evaluate the base model anew where the next evaluations cannot be compared with what the run has of it."""
        drawing = self._drawing()
        conditions = drawing.conditions(drawing.sampler)
        reasons = self._evaluations.lacks_base(conditions, self._parts.evaluator.texts)
        reasons = self._parts.processes.broadcast(reasons)  # all processes evaluate, or none
        if reasons and not self.is_over:
            if self._is_main:
                logger.warning(
                    "the base model is evaluated anew, as its evaluation cannot be compared with the next ones: %s",
                    "; ".join(reasons),
                )
            self._evaluate_base()

    def _comparable(self, rows: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
        """The main process's rows of metrics, without evaluations that cannot be compared with the base model's."""
        found: list[Mapping[str, Any]] = self._parts.processes.broadcast(self._evaluations.comparable(rows))
        return found

    def _resume(self) -> None:
        processes = self._parts.processes
        if self._is_main and holds_results(self.run):
            check_same_run(self._config, self.run.config)
        found = self._store.newest() if self._is_main else None
        last = processes.broadcast(found.epoch if found is not None else None)
        if last is not None:
            checkpoint = found if found is not None else self._store.load(last)
            spent, self.micro_batches = restore_snapshot(self._parts, checkpoint)
            self.counters, self._evaluation_costs.total = spent.training, spent.evaluation
            self.epoch = checkpoint.epoch
            self._evaluations.resume(self.epoch)
            rows = self._metrics.read(self.epoch) if self._is_main else []
            # A run that its rules have ended stays ended: they decide before the base model is measured anew.
            self._rules.replay(self._evaluations.base_metrics(), self._comparable(rows))
            self._renew_base()
            self._rules.start(self._evaluations.base_metrics(), self._comparable(rows))
        self.first_epoch = self.epoch + 1
        processes.barrier()  # all have read the files that the main process now writes
        if self._is_main:
            discard_evaluations_after(self.run, self.epoch)
            self.run.stopped.unlink(missing_ok=True)
            # The environment tells that the directory is a run's, so it comes first.
            write_environment(self.run, self._parts.backbone.device, processes.count)
            write_whole(self.run.config, self._config.to_yaml())
            self._metrics.start(self.epoch)

    # -- evaluate ------------------------------------------------------------------------------------------

    def evaluate(self, epoch: int, counters: Counters, full: bool = False) -> dict[str, float]:
        """Evaluate the weights after an epoch, and write the evaluation's files.

        Args:
            epoch: the epoch; 0 is the base model.
            counters: the costs of the run up to and including the epoch.
            full: draw as many images as at the ends of a run, and the unseen prompts too.

        Returns:
            The metrics of the evaluation.
        """
        evaluator, drawing, costs = self._parts.evaluator, self._drawing(), dataclasses.asdict(counters)
        with self._parts.precision():
            found = self._evaluation_costs.counting(lambda: evaluator(epoch, drawing, costs, full))
        return self._evaluations.record(*found)

    def _evaluate_base(self) -> None:
        """Evaluate the bare base model beside the weights of the run."""
        evaluator, drawing, costs = self._parts.evaluator, self._drawing(), dataclasses.asdict(Counters())
        with self._parts.precision():
            found = self._evaluation_costs.counting(lambda: evaluator.base(drawing, costs))
        self._evaluations.record_base(*found)

    def _drawing(self) -> Drawing:
        return self._parts.drawing(self.micro_batches.sample * self._parts.algorithm.branches)

    # -- save and rescue -----------------------------------------------------------------------------------

    def save(self, epoch: int, row: dict[str, Any], counters: Counters) -> None:
        """Save an epoch: its row of metrics, and its checkpoint where `checkpoint.every` asks for one.

        Args:
            epoch: the epoch that has ended.
            row: the epoch's row of metrics, which receives the costs of the evaluations so far.
            counters: the costs of the run up to and including the epoch.

        Raises:
            UserError: if a file cannot be written, a callback fails, or a stopping rule needs a metric that was not
                measured; in the last two cases the epoch is saved.
        """
        self.epoch, self.counters = epoch, counters
        row |= self._evaluation_costs.row()
        self._rules.observe(row)
        if self._is_main or self._parts.optimization.collective:
            spent = Spent(counters, self._evaluation_costs.total)
            checkpoint = take_snapshot(self._parts, epoch, spent, self.micro_batches, self._rules.score(row))
        if self._is_main:
            self._metrics.append(row)
            self._save(checkpoint)
        self._rules.check(row)
        self._trackers.log(row)
        if self._parts.evaluator.is_due(epoch):
            self._notify(self._parts.callbacks.on_evaluate, epoch, row)
        self._notify(self._parts.callbacks.on_epoch_end, epoch, row)

    def _save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, or keep a copy in memory where `checkpoint.every` leaves it out."""
        eligible = bool(self._config.stop_when) and checkpoint.score is not None  # can become the run's result
        if self.is_over or eligible or self.epoch % self._config.checkpoint.every == 0:
            self._store.save(checkpoint)
            self._unsaved = None
        else:
            self._unsaved = checkpoint.copy()

    def _save_unsaved(self) -> None:
        if self._unsaved is not None:
            self._store.save(self._unsaved)
            self._unsaved = None

    @contextlib.contextmanager
    def _rescuing(self, interruptions: Interruptions) -> Iterator[None]:
        """Save the last epoch when an exception ends the run, and tell an interrupted user how to resume."""
        try:
            yield
        except BaseException as stop:
            interruptions.ignore()
            self._save_unsaved()
            if isinstance(stop, KeyboardInterrupt | Terminated):
                kept = self._store.epochs()
                stop.args = (
                    f"rerun the same command to resume after epoch {kept[-1]}"
                    if kept
                    else "no epoch was completed; rerunning the same command starts over",
                )
            raise

    @contextlib.contextmanager
    def _explaining_errors(self) -> Iterator[None]:
        """Turn the errors of libraries into messages that say what to do."""
        try:
            with explaining_lost_process():
                yield
        except WRITE_ERRORS as error:
            raise UserError(
                f"a file cannot be read or written: {error}. Checkpoints in {self._store.root} are intact: fix the "
                "problem and rerun the command to resume."
            ) from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory: {cause(error)}\nChange settings that save memory, and rerun the command to resume. "
                f"{memory_knobs(self._config, self.micro_batches)}"
            ) from error

    @contextlib.contextmanager
    def explaining_divergence(self, epoch: int) -> Iterator[None]:
        """A context that explains a value that is not finite: which checkpoint is intact, and which settings to lower.

        Args:
            epoch: the epoch that is being trained.

        Raises:
            DivergenceError: in place of `NotFiniteError`.
        """
        try:
            yield
        except NotFiniteError as error:
            kept = self._store.epochs()
            last = f"The checkpoint of epoch {kept[-1]} is intact" if kept else "No checkpoint had been written"
            raise DivergenceError(
                f"epoch {epoch}: {error} is not finite. {last}. Lower train.learning_rate "
                f"(now {self._config.train.learning_rate:g}) or train.max_grad_norm, or use a wider model.dtype."
            ) from error

    # -- finish --------------------------------------------------------------------------------------------

    def finish(self) -> Path:
        """Write the result and the report; returns the report's path."""
        parts = self._parts
        epoch = self.epoch if self._rules.stop is None else self._end_early(self._rules.stop)
        with parts.evaluator.averaged():
            weights = parts.optimization.weights()  # where they are sharded, all processes gather them
            if self._is_main:
                averaged = parts.optimization.ema is not None
                write_result(self.run, parts.backbone, weights, RunResult(epoch, averaged))
        if self._is_main:
            write_report(self.run.path)
        parts.processes.barrier()
        latest = self._evaluations.latest
        self._notify(parts.callbacks.on_end, epoch, latest.metrics() if latest is not None else {})
        return self.run.report

    def _end_early(self, stop: Stop) -> int:
        """Take the best checkpoint at which no rule held as the result, and evaluate it in full; returns its epoch."""
        best = self._parts.processes.broadcast(self._rules.best(self._store.epochs()))
        if best is not None:
            checkpoint = self._store.load(best)
            self._parts.optimization.take(checkpoint.weights, checkpoint.ema)
            metrics = self.evaluate(best, Counters(**checkpoint.state["counters"]), full=True)
            self._notify(self._parts.callbacks.on_evaluate, best, metrics)
            chosen = f"of epoch {best}, the best checkpoint at which no rule held"
        else:
            chosen = "of the last epoch: no kept checkpoint was evaluated without a rule that held"
        self.ended_early = f"Stopped by stop_when after epoch {stop.epoch}: {stop.reason}. The result is that {chosen}."
        epoch = self.epoch if best is None else best
        if self._is_main:
            record = {"epoch": stop.epoch, "result_epoch": epoch, "text": self.ended_early}
            write_whole(self.run.stopped, json.dumps(record) + "\n")
        return epoch

    def _notify(self, hook: Callable[[RunState], None], epoch: int, metrics: dict[str, Any]) -> None:
        """Call a hook of the callbacks on the main process."""
        if self._is_main:
            latest = self._evaluations.latest
            hook(RunState(epoch, self._config.epochs, self.run.path, metrics, latest, self._parts))
