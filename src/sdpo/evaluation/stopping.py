"""Stopping rules: end a run when a measurement beside the reward says that training makes the images worse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo.config.schema import Config
from sdpo.config.sections import StopRule
from sdpo.errors import UserError
from sdpo.evaluation.monitors import MONITORS
from sdpo.evaluation.record import GAIN


def metric_names(config: Config) -> list[str]:
    """The metrics that stopping rules can name: those that the evaluations of this configuration measure."""
    steps = config.evaluate.steps
    scores = [f"eval/{name}/{count}" for name in [*config.rewards, *config.evaluate.observers] for count in steps]
    return [GAIN, *scores, *(f"monitor/{name}/{count}" for name in MONITORS for count in steps)]


def check_rules(config: Config) -> None:
    """Refuse rules that could never act.

    Raises:
        UserError: if a rule names no metric of the evaluations, or its settings contradict it.
    """
    if config.stop_when and config.evaluate.every == 0:
        raise UserError(
            "stop_when looks at evaluations, but evaluate.every is 0: set evaluate.every to the "
            "number of epochs between evaluations, or stop_when=[] for a run that no rule ends"
        )
    if config.stop_when and config.checkpoint.keep_best == 0:
        raise UserError(
            "stop_when makes the best checkpoint at which no rule held the result, but checkpoint.keep_best is 0: set "
            "checkpoint.keep_best to 1 or more"
        )
    for rule in config.stop_when:
        known = metric_names(config)
        if rule.metric not in known:
            raise UserError(f"stop_when: there is no metric {rule.metric!r}. Use one of: {', '.join(known)}")
        if rule.metric == GAIN and rule.relative_to is not None:
            raise UserError(f"stop_when: {GAIN} is the gain over the base model already: leave out relative_to")


@dataclass(frozen=True)
class Stop:
    """The reason why a run ends before its last epoch.

    Attributes:
        epoch: the epoch after which the rules held.
        reason: the metrics for which the rules held, and the bounds.
    """

    epoch: int
    reason: str


class StoppingRules:
    """Applies stopping rules to the rows of a run's metrics.

    The decision depends on these rows alone, so a resumed run decides as the uninterrupted one would have.

    Args:
        rules: the rules of the configuration.

    Attributes:
        stop: the reason why the run must end after the last row, or None.
    """

    def __init__(self, rules: Sequence[StopRule]) -> None:
        self.stop: Stop | None = None
        self._rules = rules
        self._base: Mapping[str, float] = {}
        self._streaks = [0] * len(rules)  # for each rule, the number of evaluations in a row at which it held
        self._healthy: dict[int, float] = {}  # the gain at each epoch at which no rule held

    def start(self, base: Mapping[str, float], rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in what was measured before this session.

        Args:
            base: the base model's metrics.
            rows: the rows of the epochs so far of a resumed run; empty for a new run.

        Raises:
            UserError: if a rule needs a metric that was not measured.
        """
        rows = list(rows)
        for rule in self._rules:
            if rule.relative_to and not base.get(rule.metric):
                found = f"is {base[rule.metric]:g}" if rule.metric in base else "was not measured as it is now"
                raise UserError(
                    f"stop_when: {rule.metric} {found} for the base model: leave out relative_to, and give an absolute "
                    "bound"
                )
            if not rows and rule.metric != GAIN and rule.metric not in base:
                raise UserError(_unmeasured(rule, base))
        self.replay(base, rows)

    def replay(self, base: Mapping[str, float], rows: Iterable[Mapping[str, Any]]) -> None:
        """Decide from the rows of the epochs so far alone; a rule whose metric the base model lacks holds nowhere.

        Args:
            base: the base model's metrics.
            rows: the rows of the epochs so far.
        """
        self.stop, self._base = None, base
        self._streaks = [0] * len(self._rules)
        self._healthy = {}
        for row in rows:
            self.observe(row)

    def observe(self, row: Mapping[str, Any]) -> None:
        """Take in a new row; rows without an evaluation change nothing."""
        if not _evaluated(row):
            return
        held = [self._is_measured(rule, row) and self._holds(rule, row[rule.metric]) for rule in self._rules]
        self._streaks = [streak + 1 if now else 0 for streak, now in zip(self._streaks, held, strict=True)]
        if not any(held) and row.get(GAIN) is not None:
            self._healthy[row["epoch"]] = row[GAIN]
        met = [rule for rule, streak in zip(self._rules, self._streaks, strict=True) if streak >= rule.patience]
        self.stop = Stop(row["epoch"], "; ".join(self._reason(rule, row) for rule in met)) if met else None

    def check(self, row: Mapping[str, Any]) -> None:
        """Refuse to continue without the metrics that the rules name.

        Raises:
            UserError: if the evaluation in the row did not measure the metric of a rule.
        """
        for rule in self._rules:
            if _evaluated(row) and rule.metric not in row:
                raise UserError(_unmeasured(rule, row))

    def score(self, row: Mapping[str, Any]) -> float | None:
        """The gain by which a row's checkpoint can be the best; None where a rule held or nothing was evaluated."""
        return self._healthy.get(row["epoch"])

    def best(self, epochs: Iterable[int]) -> int | None:
        """The epoch with the largest gain, among those of `epochs` at which no rule held; None if there is none."""
        found = [(self._healthy[epoch], epoch) for epoch in epochs if epoch in self._healthy]
        return max(found)[1] if found else None

    def _is_measured(self, rule: StopRule, row: Mapping[str, Any]) -> bool:
        return rule.metric in row and (not rule.relative_to or rule.metric in self._base)

    def _bound(self, rule: StopRule) -> float:
        bound = rule.below if rule.below is not None else rule.above
        assert bound is not None, "a rule has one bound"
        return bound * self._base[rule.metric] if rule.relative_to else bound

    def _holds(self, rule: StopRule, value: float) -> bool:
        return value < self._bound(rule) if rule.below is not None else value > self._bound(rule)

    def _reason(self, rule: StopRule, row: Mapping[str, Any]) -> str:
        side, factor = ("below", rule.below) if rule.below is not None else ("above", rule.above)
        base = f" ({factor:g} × the base model's {self._base[rule.metric]:.4g})" if rule.relative_to else ""
        times = f", at {rule.patience} evaluations in a row" if rule.patience > 1 else ""
        return f"{rule.metric} is {row[rule.metric]:.4g}, {side} {self._bound(rule):.4g}{base}{times}"


def _evaluated(row: Mapping[str, Any]) -> bool:
    return any(name.startswith("eval/") for name in row)


def _unmeasured(rule: StopRule, row: Mapping[str, Any]) -> str:
    there = ", ".join(name for name in row if name.startswith(("eval/", "monitor/")))
    return (
        f"stop_when: this run has no {rule.metric}: a schedule without a random step does not define that metric. Use "
        f"one of: {there}"
    )
