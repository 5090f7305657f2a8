"""The arguments of every command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo import __version__
from sdpo.cli import handlers

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_CONFIG = "PRESET|FILE.yaml|section.key=value"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments of the command line.

    Args:
        argv: the arguments; None uses those of the process.

    Returns:
        The arguments of a command, and its handler as `run`.

    Raises:
        SystemExit: with code 2 for wrong arguments, and code 0 after `--help` and `--version`.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse accepts positional words in one place only; overrides may also follow an option.
    has_words = "words" in arguments
    if rest and has_words and not any(word.startswith("-") for word in rest):
        arguments.words += rest
    elif rest:
        hint = "; settings look like train.learning_rate=3e-5" if has_words else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sdpo", description="Align few-step text-to-image diffusion models with rewards."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    using = (_train, _evaluate, _sample, _score, _report, _compare, _export)
    for add in (*using, _bench, _signal, _doctor, _rewards, _presets):
        add(commands)
    return parser


def _train(commands: Commands) -> None:
    train = commands.add_parser("train", help="train a model; rerun the command to resume")
    _add_words(train)
    train.add_argument("--output-dir", help="directory of the run (default: runs/<preset or file>)")
    train.add_argument("--dry-run", action="store_true", help="print the resolved configuration and its cost, and stop")
    train.set_defaults(run=handlers.train)


def _evaluate(commands: Commands) -> None:
    evaluate = commands.add_parser("evaluate", help="compute rewards at each number of steps, beside the base model's")
    _add_target(evaluate)
    evaluate.add_argument("--steps", default="1,2,4,8", help="numbers of steps (default: 1,2,4,8)")
    evaluate.add_argument(
        "--prompts",
        help="named set of prompts, or .txt, .jsonl, .json or .csv file (default: those that the run evaluates)",
    )
    evaluate.add_argument(
        "--max-prompts",
        type=int,
        help="largest number of prompts, a fixed choice (default: all of --prompts; evaluate.max_prompts of the run's)",
    )
    evaluate.add_argument("--reward", action="append", help="a reward; may be repeated (default: the run's rewards)")
    evaluate.add_argument("--images-per-prompt", type=int, default=4, help="images of each prompt (default: 4)")
    evaluate.add_argument(
        "--eta",
        metavar="own|training|η",
        help="sampler: own (the pipeline's own call), training, or the training sampler with this η (default: the "
        "run's evaluate.eta; for a model: own)",
    )
    evaluate.add_argument(
        "--strength",
        help="factors of a run's LoRA, such as 0,0.5,1: a row for each, with monitors (0: the base model)",
    )
    _add_device(evaluate)
    evaluate.add_argument(
        "--output",
        help="JSON file to write (default: DIR/evaluation.json; by another sampler than the run's, for example "
        "DIR/evaluation-eta-1.json; of --strength, DIR/evaluation-strength.json)",
    )
    evaluate.set_defaults(run=handlers.evaluate)


def _sample(commands: Commands) -> None:
    sample = commands.add_parser("sample", help="draw an image")
    _add_target(sample)
    sample.add_argument("prompt", help="text of the image")
    sample.add_argument("--steps", type=int, default=4, help="number of steps (default: 4)")
    sample.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    sample.add_argument("-o", "--output", default="sample.png", help="image file to write (default: sample.png)")
    _add_device(sample)
    sample.add_argument("--compare", action="store_true", help="draw the base (left) and the tuned model side by side")
    sample.set_defaults(run=handlers.sample)


def _score(commands: Commands) -> None:
    score = commands.add_parser("score", help="score image files")
    score.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders, or a .csv file of images and prompts"
    )
    score.add_argument(
        "--reward", action="append", required=True, help="a reward, listed by `sdpo rewards`; may be repeated"
    )
    score.add_argument("--prompt", help="prompt of all images")
    score.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="[REWARD.]KEY=VALUE",
        help="option of every reward that has it, or of one reward: path=DIR, http.url=http://localhost:8765/",
    )
    score.add_argument(
        "--batch-size", type=int, default=16, help="largest number of images in a call of a reward (default: 16)"
    )
    _add_device(score)
    score.add_argument("--json", action="store_true", help="print JSON instead of a table")
    score.add_argument("-o", "--output", help="JSON file to write as well")
    score.set_defaults(run=handlers.score)


def _report(commands: Commands) -> None:
    report = commands.add_parser("report", help="write the HTML page of a run")
    report.add_argument("target", metavar="DIR", type=Path, help="directory of a run")
    report.set_defaults(run=handlers.report)


def _compare(commands: Commands) -> None:
    compare = commands.add_parser("compare", help="compare algorithms and settings over seeds: figure, tables, page")
    compare.add_argument(
        "words", nargs="*", metavar=f"{_CONFIG}|[LABEL=]DIR", help="configuration to train, or directories of runs"
    )
    compare.add_argument("--algorithms", help="algorithms or variants to train, such as sdpo,ddpo")
    compare.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    compare.add_argument("--first-seed", type=int, default=42, help="first seed (default: 42)")
    compare.add_argument("--variants", type=Path, metavar="FILE", help="YAML file of named variants: name → overrides")
    compare.add_argument("--processes", type=int, default=1, help="number of runs to train at once (default: 1)")
    compare.add_argument("--reach", metavar="NAME", help="whose final reward the others should reach (default: ddpo)")
    compare.add_argument(
        "--output-dir",
        type=Path,
        help="directory of the comparison (default: runs/compare-<preset or file>, or runs/comparison)",
    )
    compare.add_argument("--dry-run", action="store_true", help="print the runs and their cost, and stop")
    compare.set_defaults(run=handlers.compare)


def _export(commands: Commands) -> None:
    export = commands.add_parser("export", help="write weights that other programs load, with a model card")
    export.add_argument("target", metavar="DIR", type=Path, help="directory of a run")
    export.add_argument("--to", required=True, choices=["diffusers", "comfyui", "merged"], help="form of the weights")
    export.add_argument(
        "--weights",
        choices=["ema", "raw"],
        help="ema: the moving average; raw: the trained weights (default: ema if the run has it)",
    )
    export.add_argument("--epoch", type=int, help="epoch of a checkpoint (default: the run's result)")
    export.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="data type of a merged model (default: the run's)"
    )
    export.add_argument("-o", "--output", type=Path, metavar="PATH", help="new folder (default: DIR/export/<to>)")
    export.add_argument("--push-to-hub", metavar="USER/NAME", help="also upload the folder to the Hugging Face hub")
    export.set_defaults(run=handlers.export)


def _bench(commands: Commands) -> None:
    bench = commands.add_parser("bench", help="time an epoch beside the bare network; takes as long as 15 epochs")
    _add_words(bench)
    bench.add_argument("--repetitions", type=int, default=5, help="epochs to time (default: 5; fewer are noisy)")
    bench.add_argument("--profile", type=Path, metavar="FILE", help="trace for Perfetto to write as well")
    bench.add_argument("-o", "--output", type=Path, help="JSON file to write as well")
    bench.set_defaults(run=handlers.bench)


def _signal(commands: Commands) -> None:
    signal = commands.add_parser("signal", help="measure how much of a policy gradient is signal, before training")
    signal.add_argument(
        "words",
        nargs="*",
        metavar=f"{_CONFIG}|DIR",
        help="preset, file or directory of a run (its trained weights), and settings that override it (default: emoji)",
    )
    signal.add_argument("--groups", type=int, default=720, help="groups to sample (default: 720; z grows as √n)")
    signal.add_argument(
        "--direction-samples",
        type=int,
        default=180,
        help="trajectories at each step count for the gradient of the reward itself (default: 180)",
    )
    signal.add_argument(
        "--projection", type=int, default=4096, help="dimension of the random projection (default: 4096)"
    )
    signal.add_argument("--json", action="store_true", help="print JSON instead of tables")
    signal.add_argument(
        "--output-dir",
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of signal.json and signal.png (default: runs/signal-<preset or file>; of a run, DIR/signal)",
    )
    signal.set_defaults(run=handlers.signal)


def _doctor(commands: Commands) -> None:
    doctor = commands.add_parser("doctor", help="check in seconds what could ruin a run; exit code 1 for a fault")
    _add_words(doctor)
    doctor.set_defaults(run=handlers.doctor)


def _rewards(commands: Commands) -> None:
    commands.add_parser("rewards", help="list the rewards").set_defaults(run=handlers.rewards)


def _presets(commands: Commands) -> None:
    commands.add_parser("presets", help="list the presets").set_defaults(run=handlers.presets)


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar=_CONFIG, help="preset or file, and settings that override it (default: emoji)"
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", metavar="DIR-or-MODEL", help="directory of a run, or name or folder of a diffusers model"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, … (default: auto, the fastest device)")
