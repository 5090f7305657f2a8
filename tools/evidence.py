"""Trains the runs of docs/results/plan.yaml, keeps their numbers, and makes every table of the results from them.

    python tools/evidence.py plan                        settings, runs and their cost; trains nothing
    python tools/evidence.py train [--regime NAME] [--settings A,B] [--processes 2] [--grid-only]
    python tools/evidence.py tables                      docs/results/evidence/NAME.md, from the kept runs

`train` makes what is missing, one seed after another, and can be stopped at any time: run it again. A finished run's
settings, metrics and evaluations are kept in docs/results/evidence/REGIME/, and a run that is kept there counts as
finished on any machine.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sdpo.commands.compare.plan import PlannedRun
from sdpo.commands.compare.training import train_missing
from sdpo.commands.compare.variants import name_overrides
from sdpo.config.schema import Config
from sdpo.estimate.cost import describe_cost
from sdpo.evaluation.record import ImageScores
from sdpo.report.formatting import step_label
from sdpo.report.reader import Run, read_run

RESULTS = Path(__file__).parents[1] / "docs" / "results"
KEPT_FILES = ("config.yaml", "metrics.jsonl", "stopped.json")
RESAMPLES = 10_000


@dataclass(frozen=True)
class Regime:
    """A part of the plan: settings that are compared with one another.

    Attributes:
        name: its name in the plan.
        preset: the preset that all settings vary.
        overrides: strings `section.key=value` for all runs.
        seeds: the reported seeds.
        grid_seeds: the seeds on which learning rates are chosen.
        rates: the learning rates of the grid of every setting that has no `rates` of its own.
        recommended: the setting that the others are compared with.
        settings: name → overrides, nested as in a file of variants; `rates` replaces the regime's.
    """

    name: str
    preset: str
    overrides: list[str]
    seeds: list[int]
    grid_seeds: list[int]
    rates: list[float]
    recommended: str
    settings: dict[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        shared = set(self.seeds) & set(self.grid_seeds)
        if shared:
            raise ValueError(f"{self.name}: the seeds {sorted(shared)} choose a learning rate and are reported")
        other = [name for name in self.settings if len(self.grid(name)) != len(self.rates)]
        if other:
            raise ValueError(f"{self.name}: the grids of {', '.join(other)} have another size than the others'")
        if self.recommended not in self.settings:
            raise ValueError(f"{self.name}: recommended is {self.recommended}, which is not one of its settings")

    def grid(self, setting: str) -> list[float]:
        """Return the learning rates of a setting's grid."""
        return list(self.settings[setting].get("rates", self.rates))

    def planned(self, setting: str, rate: float, seed: int, runs: Path) -> PlannedRun:
        """Return a run; its directory is the kept one if the run is kept."""
        own = {key: value for key, value in self.settings[setting].items() if key != "rates"}
        settings = [*name_overrides(setting, {setting: own}), *self.overrides]
        folder = run_name(setting, rate, seed)
        kept = RESULTS / "evidence" / self.name / folder
        path = kept if kept.is_dir() else runs / self.name / folder
        settings.append(f"train.learning_rate={rate}")
        return PlannedRun(setting, Config.load(self.preset, settings, seed=seed, output_dir=str(path)))

    def kept(self, setting: str, rate: float, seed: int) -> Run | None:
        """Return the numbers of a run that is kept; None if there is none."""
        path = RESULTS / "evidence" / self.name / run_name(setting, rate, seed)
        return read_run(path) if path.is_dir() else None

    def results(self, setting: str, rate: float, seeds: Sequence[int]) -> dict[int, Result]:
        """Return the results of the kept runs of a setting at a rate, by seed."""
        runs = {seed: self.kept(setting, rate, seed) for seed in seeds}
        return {seed: result_of(run) for seed, run in runs.items() if run is not None}


def run_name(setting: str, rate: float, seed: int) -> str:
    """Return the name of a run's directory."""
    return f"{setting}-lr{rate:g}-seed{seed}"


def load_plan(path: Path = RESULTS / "plan.yaml") -> dict[str, Regime]:
    """Read the plan: name → regime."""
    return {name: Regime(name, **fields) for name, fields in yaml.safe_load(path.read_text(encoding="utf-8")).items()}


@dataclass(frozen=True)
class Result:
    """What the evaluations of one run say of its result and its base model.

    Attributes:
        steps: the N step counts.
        reward: mean reward of the result, [N].
        base_reward: mean reward of the base model on the same prompts and seeds, [N].
        judge: share of images that the judge recognises, [N].
        base_judge: the base model's share, [N].
        judge_error: standard error of the base model's share over images, [N].
        palette: spread of background colours over the base model's, [N].
        samples, evaluations, queries: the cost of training.
    """

    steps: list[int]
    reward: np.ndarray
    base_reward: np.ndarray
    judge: np.ndarray
    base_judge: np.ndarray
    judge_error: np.ndarray
    palette: np.ndarray
    samples: int
    evaluations: int
    queries: int


def result_of(run: Run) -> Result:
    """Read a finished run's result.

    Raises:
        ValueError: if the run has no evaluation of its base model or of its result, or no judge.
    """
    base, tuned = run.base, run.tuned
    if base is None or tuned is None or tuned.judge is None:
        raise ValueError(f"{run.name} has no evaluation of its base model, its result or by a judge")
    reward = next(iter(run.config["rewards"]))
    steps = sorted(tuned.seen.scores[reward])

    def means(images: ImageScores, score: str) -> np.ndarray:
        return np.array([images.mean(score, s) for s in steps])

    judged = base.seen.scores[tuned.judge]
    errors = [np.std(judged[s], ddof=1) / np.sqrt(len(judged[s])) for s in steps]
    before, after = base.monitors["palette"], tuned.monitors["palette"]
    return Result(
        steps=steps,
        reward=means(tuned.seen, reward),
        base_reward=means(base.seen, reward),
        judge=means(tuned.seen, tuned.judge),
        base_judge=means(base.seen, tuned.judge),
        judge_error=np.array(errors),
        palette=np.array([after[s] / before[s] for s in steps]),
        samples=int(tuned.costs["images"]),
        evaluations=int(tuned.costs["denoiser_evaluations"]),
        queries=int(tuned.costs["reward_queries"]),
    )


def choose_rate(regime: Regime, setting: str) -> float | None:
    """Return the learning rate that the plan's rule chooses; None while runs of the grid are missing."""
    by_rate: dict[float, list[Result]] = {}
    for rate in regime.grid(setting):
        by_rate[rate] = list(regime.results(setting, rate, regime.grid_seeds).values())
        if len(by_rate[rate]) < len(regime.grid_seeds):
            return None
    admitted = {rate: results for rate, results in by_rate.items() if is_admitted(results)}
    if not admitted:
        return min(regime.grid(setting))
    return max(admitted, key=lambda rate: np.mean([result.reward for result in admitted[rate]]))


def is_admitted(results: Sequence[Result]) -> bool:
    """Say whether the judge recognises as much as before, and images have not become alike, at every step count."""
    judge, before, error, spread = (
        np.mean([getattr(result, field) for result in results], axis=0)
        for field in ("judge", "base_judge", "judge_error", "palette")
    )
    return bool(np.all(judge >= before - error) and np.all(spread >= 0.75))


def bootstrap_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of paired differences, from resampled seeds."""
    values = np.array(differences)
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def reported(regime: Regime) -> Iterator[tuple[str, float, dict[int, Result]]]:
    """Yield each setting that has a chosen rate and kept runs: name, rate, results by seed."""
    for setting in regime.settings:
        rate = choose_rate(regime, setting)
        if rate is None:
            continue
        results = regime.results(setting, rate, regime.seeds)
        if results:
            yield setting, rate, results


def make_tables(regime: Regime) -> str:
    """Return the tables of a regime in Markdown: results, and differences from the recommended setting."""
    rows = list(reported(regime))
    if not rows:
        nothing = "No setting has a finished grid and a reported run yet."
        return "\n".join([f"# {regime.name}", "", nothing, "", *grid_lines(regime), ""])
    steps = next(iter(rows[0][2].values())).steps
    columns = [step_label(s) for s in steps]
    lines = [f"# {regime.name}", "", "Mean ± sample standard deviation over seeds of the reward; judge and palette"]
    lines += ["are means over seeds, at each step count; palette is the share of the base model's.", ""]
    head = ["setting", "lr", "seeds", "samples", "evaluations", "queries", *columns, "mean", "judge, %", "palette, %"]
    lines += [line(head), line(["---"] * len(head))]
    first = next(iter(rows[0][2].values()))
    before = [f"{value:.3f}" for value in first.base_reward]
    lines.append(
        line(["base model", *[""] * 5, *before, f"{first.base_reward.mean():.3f}", percent(first.base_judge), ""])
    )
    for setting, rate, results in rows:
        every = list(results.values())
        rewards = np.array([result.reward for result in every])
        cells = [spread(rewards[:, i]) for i in range(len(steps))] + [spread(rewards.mean(axis=1))]
        costs = [round(float(np.mean([getattr(r, f) for r in every]))) for f in ("samples", "evaluations", "queries")]
        guards = [percent(np.mean([getattr(r, f) for r in every], axis=0)) for f in ("judge", "palette")]
        lines.append(line([setting, f"{rate:g}", str(len(every)), *(f"{c:,}" for c in costs), *cells, *guards]))
    return "\n".join([*lines, "", *difference_lines(regime, rows, columns), "", *grid_lines(regime), ""])


def grid_lines(regime: Regime) -> list[str]:
    """Return the table of the grids: one row per rate that has a run, and which rates were chosen."""
    head = ["setting", "lr", "seeds", "reward at each step count", "mean", "judge, %", "palette, %", ""]
    lines = [
        "## Learning rates",
        "",
        "Means over the seeds of the grid. A rate is admitted by the rule in `plan.yaml`.",
        "",
    ]
    lines += [line(head), line(["---"] * len(head))]
    for setting in regime.settings:
        chosen = choose_rate(regime, setting)
        for rate in regime.grid(setting):
            results = regime.results(setting, rate, regime.grid_seeds)
            if results:
                lines.append(line(grid_row(setting, rate, results, rate == chosen)))
    return lines


def grid_row(setting: str, rate: float, results: Mapping[int, Result], chosen: bool) -> list[str]:
    """Return the cells of one rate of a grid."""
    every = list(results.values())
    rewards, judge, palette = (np.mean([getattr(r, f) for r in every], axis=0) for f in ("reward", "judge", "palette"))
    words = "chosen" if chosen else "" if is_admitted(every) else "not admitted"
    shown = " ".join(f"{value:.3f}" for value in rewards)
    seeds = ", ".join(str(seed) for seed in results)
    return [setting, f"{rate:g}", seeds, shown, f"{rewards.mean():.3f}", percent(judge), percent(palette), words]


def difference_lines(
    regime: Regime, rows: Sequence[tuple[str, float, dict[int, Result]]], columns: Sequence[str]
) -> list[str]:
    """Return the table of paired differences: the recommended setting minus each other, over the seeds of both."""
    results = {setting: by_seed for setting, _, by_seed in rows}
    if regime.recommended not in results:
        return [f"`{regime.recommended}`, the recommended setting, has no reported run yet."]
    lines = [f"`{regime.recommended}` minus each other setting, over seeds; 95 % bootstrap interval of the mean's.", ""]
    lines += [line(["setting", "seeds", *columns, "mean", "interval"]), line(["---"] * (len(columns) + 4))]
    own = results.pop(regime.recommended)
    for setting, by_seed in results.items():
        seeds = sorted(own.keys() & by_seed.keys())
        if seeds:
            found = np.array([own[seed].reward - by_seed[seed].reward for seed in seeds])
            low, high = bootstrap_interval(list(found.mean(axis=1)))
            means = [f"{value:+.3f}" for value in [*found.mean(axis=0), found.mean()]]
            lines.append(line([setting, str(len(seeds)), *means, f"{low:+.3f} to {high:+.3f}"]))
    return lines


def line(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def spread(values: np.ndarray) -> str:
    """Return mean ± sample standard deviation."""
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" if len(values) > 1 else f"{values.mean():.3f}"


def percent(values: np.ndarray) -> str:
    """Return shares in percent."""
    return " ".join(f"{100 * value:.0f}" for value in values)


def keep(run: PlannedRun, regime: Regime) -> None:
    """Copy a finished run's numbers to where they are kept."""
    to = RESULTS / "evidence" / regime.name / run.path.name
    if run.path == to or not run.finished():
        return
    (to / "evaluation").mkdir(parents=True)
    for name in KEPT_FILES:
        if (run.path / name).is_file():
            shutil.copy(run.path / name, to / name)
    for file in (run.path / "evaluation").glob("*.json"):
        shutil.copy(file, to / "evaluation" / file.name)


def train(regime: Regime, settings: Sequence[str], processes: int, runs: Path, grid_only: bool) -> None:
    """Train what is missing of some settings: the grid first, then the reported seeds at the chosen rates."""
    grid = [(s, rate, seed) for seed in regime.grid_seeds for s in settings for rate in regime.grid(s)]
    train_and_keep(regime, grid, processes, runs)
    if grid_only:
        return
    rates = {setting: choose_rate(regime, setting) for setting in settings}
    chosen = [(s, rate, seed) for seed in regime.seeds for s, rate in rates.items() if rate is not None]
    train_and_keep(regime, chosen, processes, runs)


def train_and_keep(regime: Regime, wanted: Sequence[tuple[str, float, int]], processes: int, runs: Path) -> None:
    """Train some runs, as many at once as there are processes, and keep each group when it is finished."""
    for begin in range(0, len(wanted), processes):
        planned = [regime.planned(*each, runs) for each in wanted[begin : begin + processes]]
        for name, message in train_missing(planned, processes, print).items():
            print(f"{name} failed: {message}")
        for run in planned:
            keep(run, regime)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["plan", "train", "tables"])
    parser.add_argument("--regime", help="one regime; all by default")
    parser.add_argument("--settings", help="names, separated by commas; all by default")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--grid-only", action="store_true", help="stop when the learning rates can be chosen")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="where runs are trained")
    arguments = parser.parse_args()
    plan = load_plan()
    regimes = [plan[arguments.regime]] if arguments.regime else list(plan.values())
    for regime in regimes:
        names = arguments.settings.split(",") if arguments.settings else list(regime.settings)
        if arguments.command == "train":
            train(regime, names, arguments.processes, arguments.runs, arguments.grid_only)
        elif arguments.command == "tables":
            target = RESULTS / "evidence" / f"{regime.name}.md"
            target.parent.mkdir(exist_ok=True)
            target.write_text(make_tables(regime), encoding="utf-8")
        else:
            count = len(regime.rates) * len(regime.grid_seeds) + len(regime.seeds)
            print(f"{regime.name}: {len(names)} settings, {count} runs each, {count * len(names)} in all")
            for name in names:
                run = regime.planned(name, regime.grid(name)[0], regime.grid_seeds[0], arguments.runs)
                print(f"{name}: {describe_cost(run.config).splitlines()[-1]}")


if __name__ == "__main__":
    main()
