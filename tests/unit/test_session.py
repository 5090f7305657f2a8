"""The session of a run: the order in which it writes, saves, logs and calls back, on every process alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.one_weight_run import Run, Trackers

from sdpo import session as module
from sdpo.assembly.callbacks import RunState
from sdpo.errors import DivergenceError, UserError
from sdpo.loop.counters import Counters
from sdpo.loop.divergence import NotFiniteError


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


FELL = {**STOP, "stop_when": [{"metric": "monitor/diversity/1", "below": 0.5, "relative_to": "base"}]}


def test_evaluations_by_another_sampler_are_not_held_against_the_base_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(epoch: int) -> None:
        if epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, diversity={2: 0.6}, **FELL).train(interrupt)
    # By the other sampler the base model's diversity is 2: the old 0.6 is below half of it, the new ones are not.
    resumed = Run(tmp_path, diversity={0: 2.0, 4: 1.4, 6: 1.4}, eta=0.0, **FELL)
    resumed.train()
    assert resumed.events.count("evaluate the base model") == 1
    assert "the base model is evaluated anew" in caplog.text
    assert resumed.session.epoch == 6 and resumed.session.ended_early is None
    assert resumed.session._rules.best(range(9)) in (4, 6), "the gain of epoch 2 is over another base"
    again = Run(tmp_path, eta=0.0, **FELL)
    again.train()
    assert "evaluate the base model" not in again.events and again.session.ended_early is None


def test_a_run_that_its_rules_have_ended_stays_ended_under_another_sampler(tmp_path: Path) -> None:
    Run(tmp_path, diversity={4: 0.4}, **FELL).train()
    again = Run(tmp_path, diversity={0: 0.1}, eta=0.0, **FELL)
    again.train()
    assert again.session.epoch == 4 and again.session.ended_early is not None
    assert "evaluate the base model" not in again.events


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
