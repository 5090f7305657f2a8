"""The command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table

from sdpo import __version__
from sdpo.config.load import preset_names, preset_summary, split_words
from sdpo.config.schema import Config
from sdpo.config.secrets import redact
from sdpo.errors import UserError
from sdpo.rewards import DESCRIPTIONS
from sdpo.system.interrupt import Terminated
from sdpo.system.torchvision import check_torchvision
from sdpo.system.units import gigabytes

if TYPE_CHECKING:
    from sdpo.commands.bench import Measured

console = Console(highlight=False, markup=False, soft_wrap=True)  # prompts may hold [brackets]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 from the doctor, 2 for what the user can mend, 130 or 143 if ended."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes positional words in one run only; overrides may also follow an option.
    takes_settings = "words" in arguments
    if rest and takes_settings and not any(word.startswith("-") for word in rest):
        arguments.words += rest
    elif rest:
        hint = "; settings look like train.learning_rate=3e-5" if takes_settings else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    try:
        failed = arguments.run(arguments)
    except UserError as error:
        if _speaks():
            count = os.environ.get("WORLD_SIZE", "1")
            whose = "" if count == "1" else f" [process {os.environ.get('RANK')} of {count}]"
            print(f"sdpo: error: {redact(str(error))}{whose}", file=sys.stderr, flush=True)
        return 2
    except (KeyboardInterrupt, Terminated) as stop:
        if os.environ.get("RANK", "0") == "0" and _speaks():  # all processes of a run are interrupted together
            advice = stop.args[0] if stop.args and isinstance(stop.args[0], str) else "repeat the command"
            print(f"sdpo: interrupted: {advice}", file=sys.stderr, flush=True)
        return 143 if isinstance(stop, Terminated) else 130
    return int(failed or 0)


def _speaks() -> bool:
    """Whether this process tells why it ends: of several, the first to fail does, as the others fail because of it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from sdpo.distributed.processes import first_to_fail

    return first_to_fail()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sdpo", description="Align few-step text-to-image diffusion models with rewards."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train; the same command again resumes")
    train.add_argument(
        "words", nargs="*", metavar="PRESET|FILE.yaml|section.key=value", help="default: the preset emoji"
    )
    train.add_argument("--output-dir", help="default: runs/<preset or file>")
    train.add_argument("--dry-run", action="store_true", help="print the resolved config and its cost, and stop")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="rewards at each number of steps, beside the base model's")
    evaluate.add_argument("target", metavar="DIR-or-MODEL")
    evaluate.add_argument("--steps", default="1,2,4,8", help="numbers of steps, default 1,2,4,8")
    evaluate.add_argument("--prompts", help="a named set, .txt or .jsonl file; default: the run's training prompts")
    evaluate.add_argument("--reward", action="append", help="a reward; may be repeated; default: the run's")
    evaluate.add_argument("--images-per-prompt", type=int, default=4, help="default 4")
    evaluate.add_argument("--device", default="auto", help="cpu, cuda, ...; default: the fastest there is")
    evaluate.add_argument("--output", help="JSON file; default: DIR/evaluation.json")
    evaluate.set_defaults(run=_evaluate)

    sample = commands.add_parser("sample", help="an image")
    sample.add_argument("target", metavar="DIR-or-MODEL")
    sample.add_argument("prompt")
    sample.add_argument("--steps", type=int, default=4, help="default 4")
    sample.add_argument("--seed", type=int, default=0, help="default 0")
    sample.add_argument("-o", "--output", default="sample.png", help="default sample.png")
    sample.add_argument("--device", default="auto", help="cpu, cuda, ...; default: the fastest there is")
    sample.add_argument("--compare", action="store_true", help="base (left) and tuned side by side")
    sample.set_defaults(run=_sample)

    score = commands.add_parser("score", help="score image files")
    score.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, or a .csv of image and prompt")
    score.add_argument("--reward", action="append", required=True, help="see `sdpo rewards`; may be repeated")
    score.add_argument("--prompt", help="of all images")
    score.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="[REWARD.]KEY=VALUE",
        help="of the rewards that have it, or of one alone: path=DIR, http.url=http://localhost:8765/",
    )
    score.add_argument("--batch-size", type=int, default=16, help="images in a call of a reward, default 16")
    score.add_argument("--device", default="auto", help="cpu, cuda, ...; default: the fastest there is")
    score.add_argument("--json", action="store_true", help="print JSON instead of a table")
    score.add_argument("-o", "--output", help="also write JSON to this file")
    score.set_defaults(run=_score)

    report = commands.add_parser("report", help="write the HTML page of a run")
    report.add_argument("target", metavar="DIR", type=Path)
    report.set_defaults(run=_report)

    compare = commands.add_parser("compare", help="algorithms and settings over seeds: figure, tables, page")
    compare.add_argument(
        "words", nargs="*", metavar="PRESET|FILE.yaml|section.key=value|[LABEL=]DIR", help="what to train, or runs"
    )
    compare.add_argument("--algorithms", help="names of algorithms or variants to train: sdpo,ddpo")
    compare.add_argument("--seeds", type=int, default=3, help="how many, default 3")
    compare.add_argument("--first-seed", type=int, default=42, help="default 42")
    compare.add_argument("--variants", type=Path, metavar="FILE", help="YAML of named variants: name → overrides")
    compare.add_argument("--processes", type=int, default=1, help="runs that train at once, default 1")
    compare.add_argument("--reach", metavar="NAME", help="whose final reward to reach, default ddpo")
    compare.add_argument("--output-dir", type=Path, help="default: runs/compare-<preset or file>, or runs/comparison")
    compare.add_argument("--dry-run", action="store_true", help="print the runs and their cost, and stop")
    compare.set_defaults(run=_compare)

    export = commands.add_parser("export", help="weights that load elsewhere, with a model card")
    export.add_argument("target", metavar="DIR", type=Path)
    export.add_argument("--to", required=True, choices=["diffusers", "comfyui", "merged"])
    export.add_argument("--weights", choices=["ema", "raw"], help="default: the average where the run has one")
    export.add_argument("--epoch", type=int, help="of a checkpoint; default: the run's result")
    export.add_argument("-o", "--output", type=Path, metavar="PATH", help="a new folder; default: DIR/export/<to>")
    export.add_argument("--push-to-hub", metavar="USER/NAME", help="also upload it to the Hugging Face hub")
    export.set_defaults(run=_export)

    bench = commands.add_parser("bench", help="time an epoch beside the bare network; some 15 epochs long")
    bench.add_argument("words", nargs="*", metavar="PRESET|FILE.yaml|section.key=value", help="default: emoji")
    bench.add_argument("--repetitions", type=int, default=5, help="default 5; fewer are noisy")
    bench.add_argument("--profile", type=Path, metavar="FILE", help="also write a trace for Perfetto")
    bench.add_argument("-o", "--output", type=Path, help="also write JSON to this file")
    bench.set_defaults(run=_bench)

    doctor = commands.add_parser("doctor", help="what would ruin a run, in seconds; exit code 1 where something would")
    doctor.add_argument("words", nargs="*", metavar="PRESET|FILE.yaml|section.key=value", help="default: emoji")
    doctor.set_defaults(run=_doctor)

    commands.add_parser("rewards", help="the rewards there are").set_defaults(run=_rewards)
    commands.add_parser("presets", help="the presets there are").set_defaults(run=_presets)
    return parser


def _train(arguments: argparse.Namespace) -> None:
    config = _run_config(arguments.words, arguments.output_dir)
    if arguments.dry_run:
        from sdpo.assembly.build import batch_arithmetic, check_references, cost
        from sdpo.estimate.memory import describe

        check_references(config)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        lines = (batch_arithmetic(config, processes), cost(config), describe(config, processes))
        console.print(config.to_yaml(), end="")
        console.print(*lines, sep="\n")
        return
    _quiet_libraries()
    from sdpo.trainer import Trainer

    trainer = Trainer(config)
    report = trainer.train()
    if trainer.processes.is_main:
        seconds, first = trainer.counters["seconds"], trainer.first_epoch
        if first > trainer.epoch:
            done = f"this run was finished before ({trainer.epoch} epochs); its report is written again"
        else:
            done = f"trained epochs {first} to {trainer.epoch}, {seconds:.0f} s in all without evaluation"
        if trainer.ended_early:
            console.print(trainer.ended_early)
        console.print(f"{done}: {report}")


def _run_config(words: Sequence[str], output_dir: str | None = None) -> Config:
    """The configuration with the folder that training would write to."""
    config, source = _config(words)
    default = f"runs/{Path(source).stem if source else 'emoji'}"
    return config.model_copy(update={"output_dir": output_dir or config.output_dir or default})


def _config(words: Sequence[str]) -> tuple[Config, str | None]:
    """The configuration that the command line describes, and the preset or file it began with."""
    source, overrides = split_words(words)
    return Config.load(source, overrides), source


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error}") from error


def _evaluate(arguments: argparse.Namespace) -> None:
    _quiet_libraries()
    from sdpo.commands.target import evaluate_target

    try:
        steps = [int(s) for s in arguments.steps.split(",")]
    except ValueError as error:
        raise UserError(f"--steps {arguments.steps!r}: expected numbers such as 1,2,4,8") from error
    if min(steps) < 1 or arguments.images_per_prompt < 1:
        raise UserError("--steps and --images-per-prompt must be at least 1")
    result, default = evaluate_target(
        arguments.target, steps, arguments.prompts, arguments.reward, arguments.images_per_prompt, arguments.device
    )
    path = Path(arguments.output) if arguments.output else default
    replaced = path is not None and path.exists()
    if path is not None:
        _write(path, json.dumps(result, indent=1) + "\n")
    console.print(_evaluation_table(result))
    if path is not None:
        console.print(f"written to {path}{', in place of what it held (--output keeps both)' * replaced}")


def _evaluation_table(result: dict[str, Any]) -> Table:
    tuned = "after" in result
    table = Table(title=f"{len(result['prompts'])} images a step count")
    for column in ["reward", "steps", "base", *(["tuned", "paired gain"] if tuned else [])]:
        table.add_column(column, justify="left" if column == "reward" else "right")
    for name, by_steps in result["summary"].items():
        for steps, row in by_steps.items():
            cells = [name, steps, f"{row['base']:.4f}"]
            if tuned:
                error = row["standard_error"]
                cells += [
                    f"{row['tuned']:.4f}",
                    f"{row['gain']:+.4f}" + (f" ± {error:.4f}" if error is not None else ""),
                ]
            table.add_row(*cells)
    return table


def _sample(arguments: argparse.Namespace) -> None:
    _quiet_libraries()
    from sdpo.commands.target import sample_target

    if arguments.steps < 1 or not 0 <= arguments.seed < 2**63:
        raise UserError("--steps must be at least 1, --seed in 0 … 2⁶³ − 1")
    image = sample_target(
        arguments.target, arguments.prompt, arguments.steps, arguments.seed, arguments.compare, arguments.device
    )
    try:
        image.save(arguments.output)
    except (OSError, ValueError) as error:
        raise UserError(f"--output {arguments.output} cannot be written: {error}") from error
    console.print(f"written to {arguments.output}")


def _score(arguments: argparse.Namespace) -> None:
    _quiet_libraries()
    from sdpo.commands.score import collect, score_files
    from sdpo.config.load import parse_assignment
    from sdpo.distributed.processes import Processes

    if arguments.batch_size < 1:
        raise UserError("--batch-size must be at least 1")
    options = dict(parse_assignment(text, "--option", "path=/models/pickscore") for text in arguments.option)
    items = collect(arguments.images, arguments.prompt)
    device = str(Processes(arguments.device).device)
    rows = score_files(items, arguments.reward, options, arguments.batch_size, device)
    if arguments.output:
        _write(Path(arguments.output), json.dumps(rows, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table()
    for column in ("image", "prompt", *arguments.reward):
        table.add_column(column, justify="left" if column in ("image", "prompt") else "right", overflow="fold")
    for row in rows:
        table.add_row(row["image"], row["prompt"], *(f"{row[name]:.4f}" for name in arguments.reward))
    console.print(table)
    if len(rows) > 1:
        means = (f"{name} {sum(r[name] for r in rows) / len(rows):.4f}" for name in arguments.reward)
        console.print(f"mean of {len(rows)} images: {', '.join(means)}")


def _report(arguments: argparse.Namespace) -> None:
    from sdpo.report import write_report

    console.print(f"written to {write_report(arguments.target)}")


def _compare(arguments: argparse.Namespace) -> None:
    _quiet_libraries()
    from sdpo.cli.compare import run

    run(arguments, console)


def _export(arguments: argparse.Namespace) -> None:
    _quiet_libraries()
    from sdpo.commands.export import export

    folder = export(
        arguments.target, arguments.to, arguments.weights, arguments.epoch, arguments.output, arguments.push_to_hub
    )
    sent = f" and sent to https://huggingface.co/{arguments.push_to_hub}" if arguments.push_to_hub else ""
    console.print(f"written to {folder}{sent}; README.md says how to load it")


def _bench(arguments: argparse.Namespace) -> None:
    _quiet_libraries()
    from sdpo.commands.bench import bench

    if arguments.repetitions < 1:
        raise UserError("--repetitions must be at least 1")
    config, _ = _config(arguments.words)
    measured = bench(config, arguments.repetitions, arguments.profile)
    if arguments.output:
        _write(arguments.output, json.dumps(dataclasses.asdict(measured), indent=1) + "\n")
    console.print(_bench_tables(measured))


def _bench_tables(measured: Measured) -> Group:
    count, bare, batch = measured.evaluations, measured.bare, measured.batch
    epoch = Table(title=f"an epoch on {measured.device}, medians of {measured.repetitions}")
    for column in ("phase", "seconds", "share"):
        epoch.add_column(column, justify="left" if column == "phase" else "right")
    for name, seconds in measured.phases.items():
        epoch.add_row(name, f"{seconds:.3f}", f"{seconds / measured.epoch:.1%}")
    epoch.add_row("epoch", f"{measured.epoch:.3f}", "", style="bold")
    limit = Table(title="the bare network, for the same evaluations")
    for column in ("", "number", "batch", "ms each", "seconds"):
        limit.add_column(column, justify="left" if not column else "right")
    for name, kind, label in (
        ("forward", "sample", "forward"),
        ("backward", "update", "forward + backward"),
    ):
        for where, size in (("same", batch[kind]), ("best", batch[name])):
            each = bare[f"{name}_{where}"]
            label_of = f"{label}, {'as in the run' if where == 'same' else 'at its best'}"
            limit.add_row(label_of, str(count[name]), str(size), f"{1e3 * each:.2f}", f"{each * count[name]:.3f}")
    for name in ("decode", "reward"):
        limit.add_row(name, "", "", "", f"{bare[name]:.3f}")
    limit.add_row("limit (at its best)", "", "", "", f"{measured.limit:.3f}", style="bold")
    line = (
        f"epoch / limit: {measured.ratio:.3f} (median; each: {', '.join(f'{r:.3f}' for r in measured.ratios)})\n"
        f"{measured.samples_per_second:.1f} trajectories a second; peak memory {gigabytes(measured.peak_bytes)}; "
        f"encoding all prompts, once a run: {measured.encode:.3f} s"
    )
    return Group(epoch, limit, line)


def _doctor(arguments: argparse.Namespace) -> int:
    """Prints a line a check; returns 1 if one failed."""
    _quiet_libraries()
    from sdpo.commands.doctor import examine

    counts = {"ok": 0, "WARN": 0, "FAIL": 0}
    for finding in examine(_run_config(arguments.words)):
        counts[finding.status] += 1
        console.print(f"{finding.status:4}  {finding.check:18} {redact(finding.text)}")
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
    return int(counts["FAIL"] > 0)


def _rewards(arguments: argparse.Namespace) -> None:
    console.print(f"{'name':23} {'scores':13} {'weights':>7}  {'licence':16} what it is")
    for d in DESCRIPTIONS:
        console.print(f"{d.name:23} {d.range:13} {gigabytes(d.size) if d.size else '-':>7}  {d.licence:16} {d.text}")
    console.print(f"{'my_module:my_reward':23} {'yours':13} {'-':>7}  {'':16} your own callable: see docs/rewards.md")


def _presets(arguments: argparse.Namespace) -> None:
    width = max(map(len, preset_names()))
    for name in preset_names():
        console.print(f"{name:{width}} {preset_summary(name)}")


def _quiet_libraries() -> None:
    """Keep the libraries' notes and bars away from ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    check_torchvision()  # before anything imports them
    from sdpo.backbones.quiet import quiet_libraries

    quiet_libraries()


if __name__ == "__main__":
    sys.exit(main())
