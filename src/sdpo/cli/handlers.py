"""The commands: each checks its arguments, calls the library, and prints the result.

The library is imported inside the handlers, so that help, listings and configuration errors need no torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo.cli.output import console, say, show, write
from sdpo.errors import UserError
from sdpo.system.log import is_main_process
from sdpo.system.replaceable import check_replaceable, holds_json, holds_text

if TYPE_CHECKING:
    from sdpo.config import Config
    from sdpo.session import Session


def train(arguments: Namespace) -> None:
    """Train a model, or print what the training costs."""
    config = _run_config(arguments.words, arguments.output_dir)
    if arguments.dry_run:
        _describe(config)
        return
    _prepare_libraries()
    from sdpo.trainer import Trainer

    trainer = Trainer(config)
    report = trainer.train()
    if trainer.parts.processes.is_main:
        _conclude(trainer.session, report)


def _describe(config: Config) -> None:
    """Print a resolved configuration, its cost, and what the run will warn of."""
    from sdpo.assembly.prompt_statistics import describe_statistics
    from sdpo.estimate.cost import describe_batches, describe_cost
    from sdpo.estimate.evaluation_cost import describe_evaluations
    from sdpo.estimate.memory_peaks import describe_memory
    from sdpo.estimate.preflight import check_references
    from sdpo.prompts import load_prompts
    from sdpo.run.directory import RunDirectory
    from sdpo.run.ownership import check_directory

    check_references(config)
    check_directory(RunDirectory(Path(str(config.output_dir))), config)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    lines = (
        describe_batches(config, processes),
        describe_cost(config),
        describe_evaluations(config),
        describe_memory(config, processes),
    )
    say(config.to_yaml(), end="")
    say("\n".join(lines))
    if late := describe_statistics(config, len(load_prompts(config.prompts.train))):
        say(f"# {late}")


def _conclude(session: Session, report: Path) -> None:
    """Print which epochs were trained, what the monitors warn of, and where the report is."""
    from sdpo.report.reader import read_run
    from sdpo.report.warnings import collapse_warnings

    if session.first_epoch > session.epoch:
        done = f"this run was finished before ({session.epoch} epochs); its report is written again"
    else:
        training, evaluating = round(session.counters.seconds), round(session.evaluation_costs.seconds)
        done = (
            f"trained epochs {session.first_epoch} to {session.epoch}: {training + evaluating} s in all, "
            f"{training} s of training and {evaluating} s of evaluation"
        )
    if session.ended_early:
        say(session.ended_early)
    for warning in collapse_warnings(read_run(session.run.path)):
        say(f"warning: {warning}")
    say(f"{done}: {report}")


def evaluate(arguments: Namespace) -> None:
    """Evaluate a run or a model at several numbers of steps."""
    try:
        steps = [int(s) for s in arguments.steps.split(",")]
    except ValueError as error:
        raise UserError(f"--steps {arguments.steps!r}: expected numbers such as 1,2,4,8") from error
    if (
        min(steps) < 1
        or min(arguments.images_per_prompt, 1 if arguments.max_prompts is None else arguments.max_prompts) < 1
    ):
        raise UserError("--steps, --images-per-prompt and --max-prompts must be at least 1")
    _prepare_libraries()
    from sdpo.cli.tables import evaluation_table, strength_table
    from sdpo.commands.evaluate import WRITTEN, default_output, evaluate_target
    from sdpo.commands.strengths import WRITTEN as SWEPT
    from sdpo.commands.strengths import evaluate_strengths, read_strengths

    sweep = arguments.strength is not None
    strengths = read_strengths(arguments.strength) if sweep else []
    own = default_output(arguments.target, arguments.eta, sweep)
    path = Path(arguments.output) if arguments.output else own
    if path is not None:
        check_replaceable(path, "--output", holds_json(SWEPT if sweep else WRITTEN))
    options = (
        steps,
        arguments.prompts,
        arguments.reward,
        arguments.images_per_prompt,
        arguments.device,
        arguments.eta,
        arguments.max_prompts,
    )
    if sweep:
        result = evaluate_strengths(arguments.target, strengths, *options)
    else:
        result, _ = evaluate_target(arguments.target, *options)
    replaced = path is not None and path.exists()
    if path is not None:
        write(path, json.dumps(result, indent=1) + "\n")
    show(strength_table(result) if sweep else evaluation_table(result))
    if path is not None:
        say(f"written to {path}{', in place of its earlier contents (use --output to keep both)' * replaced}")


def sample(arguments: Namespace) -> None:
    """Draw an image."""
    if arguments.steps < 1 or not 0 <= arguments.seed < 2**63:
        raise UserError("--steps must be at least 1, --seed in 0 … 2⁶³ − 1")
    _prepare_libraries()
    from sdpo.commands.sample import is_sample, sample_target, save_sample

    path = Path(arguments.output)
    check_replaceable(path, "--output", is_sample)
    image = sample_target(
        arguments.target, arguments.prompt, arguments.steps, arguments.seed, arguments.compare, arguments.device
    )
    if is_main_process():
        save_sample(image, path)
    say(f"written to {path}")


def score(arguments: Namespace) -> None:
    """Score image files."""
    if arguments.batch_size < 1:
        raise UserError("--batch-size must be at least 1")
    from sdpo.config.load import parse_assignment

    options = dict(parse_assignment(text, "--option", "path=/models/pickscore") for text in arguments.option)
    _prepare_libraries()
    from sdpo.cli.tables import score_table
    from sdpo.commands.score import WRITTEN, collect, score_files
    from sdpo.distributed.processes import Processes

    if arguments.output:
        check_replaceable(Path(arguments.output), "--output", holds_json(WRITTEN))
    items = collect(arguments.images, arguments.prompt)
    device = str(Processes(arguments.device).device)
    rows = score_files(items, arguments.reward, options, arguments.batch_size, device)
    if arguments.output:
        write(Path(arguments.output), json.dumps(rows, indent=1) + "\n")
    if arguments.json:
        say(json.dumps(rows, indent=1))
        return
    show(score_table(rows, arguments.reward))
    if len(rows) > 1:
        means = (f"{name} {sum(r[name] for r in rows) / len(rows):.4f}" for name in arguments.reward)
        say(f"mean of {len(rows)} images: {', '.join(means)}")


def report(arguments: Namespace) -> None:
    """Write the HTML page of a run."""
    from sdpo.report import write_report

    if is_main_process():
        say(f"written to {write_report(arguments.target)}")


def compare(arguments: Namespace) -> None:
    """Compare runs, or train the runs of a comparison."""
    _prepare_libraries()
    from sdpo.cli.compare import run

    run(arguments, console())


def export(arguments: Namespace) -> None:
    """Write the weights of a run for other programs."""
    if not is_main_process():
        return
    _prepare_libraries()
    from sdpo.commands.export import export as write_export
    from sdpo.report.formatting import percent

    written = write_export(
        arguments.target,
        arguments.to,
        arguments.weights,
        arguments.epoch,
        arguments.output,
        arguments.push_to_hub,
        arguments.dtype,
    )
    if written.rounding is not None:
        distance = percent(written.rounding)
        say(f"rounding to {written.dtype}: the merged change differs from the LoRA's by {distance} (relative L2)")
    sent = f" and uploaded to https://huggingface.co/{arguments.push_to_hub}" if arguments.push_to_hub else ""
    say(f"written to {written.folder}{sent}; README.md explains how to load it")


def bench(arguments: Namespace) -> None:
    """Time an epoch."""
    if arguments.repetitions < 1:
        raise UserError("--repetitions must be at least 1")
    config, _ = _load_config(arguments.words)
    _prepare_libraries()
    from sdpo.cli.tables import bench_tables
    from sdpo.commands.bench import WRITTEN
    from sdpo.commands.bench import bench as measure

    if arguments.output:
        check_replaceable(arguments.output, "--output", holds_json(WRITTEN))
    if arguments.profile:
        check_replaceable(arguments.profile, "--profile", holds_text('"traceEvents"'))
    measured = measure(config, arguments.repetitions, arguments.profile)
    if arguments.output:
        values = dataclasses.asdict(measured).items()  # JSON has no NaN, which stands for a time that was not measured
        plain = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values}
        write(arguments.output, json.dumps(plain, indent=1, allow_nan=False) + "\n")
    show(bench_tables(measured))


def signal(arguments: Namespace) -> None:
    """Measure the signal of a policy gradient."""
    _prepare_libraries()
    from sdpo.cli.signal import run

    run(arguments, console())


def doctor(arguments: Namespace) -> int:
    """Check what could ruin a run; returns 1 if a check failed."""
    config = _run_config(arguments.words)
    _prepare_libraries()
    from sdpo.commands.doctor import examine
    from sdpo.config.secrets import redact

    counts = {"ok": 0, "WARN": 0, "FAIL": 0}
    for finding in examine(config):
        counts[finding.status] += 1
        say(f"{finding.status:4}  {finding.check:18} {redact(finding.text)}")
    say(", ".join(f"{count} {status}" for status, count in counts.items()))
    return int(counts["FAIL"] > 0)


def rewards(arguments: Namespace) -> None:
    """List the rewards."""
    from sdpo.rewards.descriptions import DESCRIPTIONS
    from sdpo.system.units import gigabytes

    say(f"{'name':23} {'scores':13} {'weights':>7}  {'gradient':8}  {'licence':16} description")
    for d in DESCRIPTIONS:
        size, gradient = gigabytes(d.size) if d.size else "-", "yes" if d.has_gradient else "no"
        say(f"{d.name:23} {d.range:13} {size:>7}  {gradient:8}  {d.licence:16} {d.text}")
    own = "your own callable: see docs/rewards.md"
    say(f"{'my_module:my_reward':23} {'yours':13} {'-':>7}  {'own':8}  {'':16} {own}")


def presets(arguments: Namespace) -> None:
    """List the presets."""
    from sdpo.config.load import preset_names, preset_summary

    width = max(map(len, preset_names()))
    for name in preset_names():
        say(f"{name:{width}} {preset_summary(name)}")


def _run_config(words: Sequence[str], output_dir: str | None = None) -> Config:
    """Load the configuration that words describe, with the directory that training would write to."""
    from sdpo.config import Config

    config, source = _load_config(words)
    default = f"runs/{Path(source).stem if source else 'emoji'}"
    return Config.parse({**config.model_dump(mode="json"), "output_dir": output_dir or config.output_dir or default})


def _load_config(words: Sequence[str]) -> tuple[Config, str | None]:
    """Load the configuration that words describe, and the preset or file among them."""
    from sdpo.config import Config
    from sdpo.config.load import split_words

    source, overrides = split_words(words)
    return Config.load(source, overrides), source


def _prepare_libraries() -> None:
    """Check that diffusers and transformers can be imported, and silence their logs and progress bars."""
    from sdpo.system.torchvision import check_torchvision

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    check_torchvision()
    from sdpo.backbones.quiet import quiet_libraries

    quiet_libraries()
