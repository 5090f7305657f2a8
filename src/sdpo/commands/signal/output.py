"""`signal.json` and `signal.png`: each is complete whenever it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sdpo.commands.signal.recommend import BRANCHING, describe_direction, ranked_credits, recommend
from sdpo.commands.signal.result import SignalResult
from sdpo.errors import UserError
from sdpo.report.plotting import plot_arguments, style_axes
from sdpo.system.durable import write_whole

WRITTEN = ("alternatives", "directions", "recommendation")
"""Keys of every result, by which its file is recognised."""


def signal_json(result: SignalResult) -> dict[str, Any]:
    """The content of `signal.json`; docs/signal.md describes its keys."""
    config, options = result.config, result.options
    return {
        "model": config.model.path,
        "lora": config.lora.path if config.lora is not None else None,
        "rewards": dict(config.rewards),
        "algorithm": config.algorithm["name"],
        "seed": config.seed,
        "num_steps": config.sample.num_steps,
        "branches": result.measured[0].alternative.branches,
        "groups": options.groups,
        "trajectories": options.groups * result.measured[0].alternative.branches,
        "parameters": result.parameters,
        "projection": {
            "dimension": min(options.dimension, result.parameters),
            "exact": result.parameters <= options.dimension,
        },
        "directions": {
            "names": list(result.directions),
            "ranked_by": result.main_direction,
            "samples": options.direction_samples if len(result.directions) > 1 else None,
        },
        "alternatives": [measured.as_json() for measured in result.measured],
        "left_out": result.left_out,
        "branching": BRANCHING,
        "recommendation": recommend(result).as_json(),
        "seconds": result.seconds,
    }


def save_result(result: SignalResult, folder: Path) -> tuple[Path, Path]:
    """Write both files into a folder; returns their paths.

    Raises:
        UserError: if they cannot be written.
    """
    files = paths(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _draw(result, files[1])
        write_whole(files[0], json.dumps(signal_json(result), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error
    return files


def paths(folder: Path) -> tuple[Path, Path]:
    """The paths of the result's JSON file and of its picture in a folder."""
    return folder / "signal.json", folder / "signal.png"


def _draw(result: SignalResult, path: Path) -> None:
    """Draw z of every credit towards each direction, with 95 % intervals."""
    figure = Figure(figsize=(7.2, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [result.measured[0], *reversed(ranked_credits(result))]
    width = 0.6 / max(1, len(result.directions))
    for i, direction in enumerate(result.directions):
        scores = [measured.z(direction) for measured in shown]
        style = {**plot_arguments(i), "linestyle": "none"}
        axes.errorbar(
            [place + (i - (len(result.directions) - 1) / 2) * width for place in range(len(shown))],
            [score.value for score in scores],
            yerr=[score.interval[1] - score.value for score in scores],
            label=direction,
            capsize=2,
            **style,
        )
    style_axes(axes)
    axes.axhline(0, color="#9aa0a6", linewidth=0.8)
    axes.set_xticks(range(len(shown)), [measured.alternative.name for measured in shown], fontsize=8)
    axes.set_ylabel(f"z of {result.options.groups} groups", fontsize=9)
    axes.set_title(
        f"z with 95 % intervals, ranked by {describe_direction(result.main_direction)}", fontsize=9, loc="left"
    )
    axes.legend(fontsize=8, frameon=False, ncols=4)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", metadata={"Software": None})
    temporary.replace(path)
