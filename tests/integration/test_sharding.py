"""A sharded launch makes the same run as one process, and each resumes the other's runs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import small_run
from helpers.command_line import Run, failed
from helpers.launched_processes import ended, launch
from helpers.pipelines import load_pipeline
from helpers.run_files import rows, rows_without_time
from helpers.spoiled_loss import spoiled_loss

from sdpo import Trainer
from sdpo.cli.main import main
from sdpo.loop.policy import Policy
from sdpo.run.checkpoint import Checkpoint, CheckpointStore

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
SETTINGS: dict[str, Any] = dict(
    epochs=2,
    sample={"prompts_per_epoch": 8},
    train={"batch_size": 4, "micro_batch": 1, "kl_weight": 0.1},  # several calls a step, and the base model
    evaluate={"every": 2, "steps": [1, 2]},  # three prompts: the processes draw two images and one
)
# With a small ε, AdamW makes full-sized steps from gradients that are only rounding.
ALL_WEIGHTS: dict[str, Any] = {
    **SETTINGS,
    "lora": None,
    "train": {**SETTINGS["train"], "learning_rate": 1e-4, "epsilon": 1e-4},
}
TRAJECTORIES: dict[str, Any] = {**SETTINGS, "algorithm": {"name": "rebel", "credit": "step", "clip_range": 0.0}}
BRANCHED: dict[str, Any] = {
    **SETTINGS,
    "algorithm": {"name": "sdpo", "branches": 3, "credit": "future", "reward_plan": "all", "clip_range": 1e-4},
    "sample": {"prompts_per_epoch": 8, "num_steps": 3, "branch_at": 1},
}

has_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


def train(model: Path, run: Path, settings: dict[str, Any]) -> None:
    trainer = Trainer(small_run.config(model, run, **settings))
    trainer.train()
    network = list(trainer.parts.backbone.network_module.parameters())
    held = sum(getattr(p, "_local_tensor", p).numel() for p in network) / sum(p.numel() for p in network)
    kind = type(trainer.parts.optimization).__name__
    run.with_suffix(f".rank{trainer.parts.processes.rank}.json").write_text(json.dumps({"held": held, "kind": kind}))


class LaunchedRuns:
    """Runs of two epochs; one that several tests use is trained once."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self.made: dict[str, Path] = {}

    def run(self, settings: dict[str, Any], count: int, environment: dict[str, str], begun: Path | None = None) -> Path:
        """The directory of a run.

        Args:
            settings: the settings of the run.
            count: the number of processes.
            environment: the environment variables of the launch.
            begun: a run whose first epoch is taken, as if that launch had ended then.
        """
        key = repr((settings, count, environment, begun))
        if key not in self.made:
            run = self.made[key] = self.folder / str(len(self.made))
            if begun is not None:
                shutil.copytree(begun, run)
                shutil.rmtree(run / "checkpoints" / "2")
            logs = self.folder / f"{run.name}.logs"
            codes, texts = ended(launch(count, train, self.model, run, settings, logs=logs, **environment), logs)
            assert codes == [0] * count, texts
        return self.made[key]

    def alone(self, settings: dict[str, Any]) -> Path:
        """The directory of the run that one process makes."""
        return self.run(settings, 1, {})


@pytest.fixture(scope="module")
def runs(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchedRuns]:
    yield LaunchedRuns(tiny_pipeline, tmp_path_factory.mktemp("sharding"))


def last(run: Path) -> Checkpoint:
    return CheckpointStore(run / "checkpoints").load(2)


def assert_alike(one: Path, other: Path) -> None:
    """Weights, averages, moments and metrics agree, up to the order of sums."""
    left, right = last(one), last(other)
    assert left.weights.keys() == right.weights.keys() and left.ema.keys() == right.ema.keys() != set()
    for name, weight in left.weights.items():
        torch.testing.assert_close(right.weights[name], weight, atol=1e-5, rtol=0, msg=name)
        torch.testing.assert_close(right.ema[name], left.ema[name], atol=1e-5, rtol=0, msg=name)
    (before, after) = (c.state["updater"]["optimizer"]["state"] for c in (left, right))
    assert before.keys() == after.keys() and len(before) == len(left.weights)
    for i, moments in before.items():
        assert moments["step"] == after[i]["step"] > 0
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(after[i][moment], moments[moment], atol=1e-4, rtol=1e-2)
    for expected, found in zip(rows_without_time(one), rows_without_time(other), strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert value is None or found[name] == pytest.approx(value, rel=5e-3, abs=2e-5), name


both = pytest.mark.parametrize("environment", [FSDP, pytest.param(ZERO, marks=has_deepspeed)], ids=["FSDP2", "ZeRO-2"])


@both
@pytest.mark.parametrize(
    "settings",
    [SETTINGS, ALL_WEIGHTS, TRAJECTORIES, BRANCHED],
    ids=["lora", "all weights", "trajectories", "branched"],
)
def test_a_sharded_run_equals_an_unsharded_one(
    runs: LaunchedRuns, settings: dict[str, Any], environment: dict[str, str]
) -> None:
    split = runs.run(settings, 2, environment)
    assert_alike(runs.alone(settings), split)
    for rank in (0, 1):
        seen = json.loads(split.with_suffix(f".rank{rank}.json").read_text())
        if environment is ZERO:
            assert seen == {"kind": "ZeRO2Optimization", "held": 1.0}
        elif settings is ALL_WEIGHTS:
            assert seen["kind"] == "FSDP2Optimization" and 0.48 < seen["held"] < 0.52
        else:
            assert seen["kind"] == "Optimization" and 0.5 < seen["held"] < 0.6, "the LoRA is whole on both"


@both
@pytest.mark.parametrize("settings", [SETTINGS, ALL_WEIGHTS], ids=["lora", "all weights"])
@pytest.mark.parametrize("first", ["sharded", "unsharded"])
def test_sharded_and_unsharded_launches_resume_each_other(
    runs: LaunchedRuns, settings: dict[str, Any], environment: dict[str, str], first: str
) -> None:
    alone = runs.alone(settings)
    if first == "sharded":
        resumed = runs.run(settings, 1, {}, begun=runs.run(settings, 2, environment))
    else:
        resumed = runs.run(settings, 2, environment, begun=alone)
    assert_alike(alone, resumed)


def test_weights_may_stay_gathered_after_the_forward_pass(runs: LaunchedRuns) -> None:
    """Gathered weights are kept until the update's backward pass frees them."""
    kept = {**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false", "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}
    assert_alike(runs.alone(ALL_WEIGHTS), runs.run(ALL_WEIGHTS, 2, kept))


def test_shards_of_unequal_size(runs: LaunchedRuns) -> None:
    """Three processes: neither the weights nor the images of an evaluation divide evenly."""
    settings = {**ALL_WEIGHTS, "sample": {"prompts_per_epoch": 6}, "train": {**ALL_WEIGHTS["train"], "batch_size": 3}}
    assert_alike(runs.alone(settings), runs.run(settings, 3, FSDP))


@both
def test_bfloat16(runs: LaunchedRuns, environment: dict[str, str]) -> None:
    """Sampling and update round alike, so that the log-ratio before the first update is 0, and the weights change."""
    settings = {**ALL_WEIGHTS, "model": {"dtype": "bfloat16"}, "sample": {**ALL_WEIGHTS["sample"], "micro_batch": 1}}
    run = runs.run(settings, 2, environment)
    assert [row["train/on_policy_log_ratio"] for row in rows(run)] == [0.0] * 2
    weights = CheckpointStore(run / "checkpoints")
    first, second = (weights.load(epoch).weights for epoch in (1, 2))
    assert {w.dtype for w in second.values()} == {torch.float32} and any((first[n] != second[n]).any() for n in first)


def test_the_result_loads_as_an_unsharded_run_does(runs: LaunchedRuns) -> None:
    for settings, load in ((ALL_WEIGHTS, "model"), (SETTINGS, "lora")):
        alone, split = runs.alone(settings), runs.run(settings, 2, FSDP)
        found = []
        for run in (alone, split):
            pipeline = load_pipeline(run / "model" if load == "model" else runs.model)
            if load == "lora":
                pipeline.load_lora_weights(run / "lora")
            found.append({n: p.detach() for n, p in pipeline.unet.named_parameters()})
        assert found[0].keys() == found[1].keys()
        for name, weight in found[0].items():
            torch.testing.assert_close(found[1][name], weight, atol=1e-5, rtol=0, msg=name)


@both
def test_a_loss_that_is_not_finite_skips_the_step_on_every_rank(
    runs: LaunchedRuns, environment: dict[str, str], tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    codes, texts = ended(launch(2, train_spoiled, runs.model, tmp_path / "run", logs=logs, **environment), logs)
    assert codes == [0, 0], texts
    assert [row["train/skipped_steps"] for row in rows(tmp_path / "run")] == [1, 0]
    assert "was not finite; its optimizer step, and others like it, were skipped" in texts[0]


def train_spoiled(model: Path, run: Path) -> None:
    """Train with an infinite third loss, of finite gradients, on the second process."""
    train = {**ALL_WEIGHTS["train"], "on_nonfinite": "skip"}
    trainer = Trainer(small_run.config(model, run, **{**ALL_WEIGHTS, "train": train}))
    algorithm: Any = type(trainer.parts.algorithm)  # changed for good: this process ends with the run
    at = 3 if trainer.parts.processes.rank == 1 else 0
    algorithm.loss = spoiled_loss(algorithm.loss, at, lambda loss: loss + float("inf"))
    trainer.train()


def test_a_killed_process_ends_the_run(tiny_pipeline: Path, tmp_path: Path) -> None:
    """The other process waits inside the network at that moment."""
    logs = tmp_path / "logs"
    codes, texts = ended(launch(2, train_and_die, tiny_pipeline, tmp_path / "run", logs=logs, **FSDP), logs)
    assert codes == [2, -signal.SIGKILL], texts
    assert "another process of this run has ended" in texts[0] and "Traceback" not in texts[0], texts


def train_and_die(model: Path, run: Path) -> int:
    """Train, and kill the second process in the middle of sampling."""
    command = small_run.arguments(model, run.with_name(f"run{os.environ['RANK']}"), **{**SETTINGS, "epochs": 6})
    transition, calls = Policy.transition, 0

    def killed(self: Policy, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if os.environ["RANK"] == "1" and calls == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return transition(self, *arguments)

    Policy.transition = killed  # type: ignore[method-assign]
    return main([*command[:-1], str(run)])


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version 1: set it to 2"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "train.gradient_checkpointing=true"),
        ({**FSDP, "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "SIZE_BASED_WRAP"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config"),
        pytest.param({**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero_stage 3", marks=has_deepspeed),
        pytest.param(
            {**ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload_optimizer", marks=has_deepspeed
        ),
    ],
)
def test_unsupported_launches_are_refused(
    sdpo: Run, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    failed(sdpo("train", "emoji", "--output-dir", "run"), message)
    assert not Path("run").exists()


RECORDER = """
import os
class Recorder:
    seen = []
    def __init__(self):
        self.seen.append(os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"])
    def __call__(self, images, prompts, metadata):
        return images.mean((1, 2, 3))
"""


def test_every_rank_loads_all_weights(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the model and the rewards overrides a launch that asks for weights on the first rank alone."""
    name, seen, load = "FSDP_CPU_RAM_EFFICIENT_LOADING", [], DiffusionPipeline.from_pretrained
    (tmp_path / "recorder.py").write_text(RECORDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(name, "true")

    def recorded(*arguments: Any, **options: Any) -> Any:
        seen.append(os.environ[name])
        return load(*arguments, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", recorded)
    Trainer(small_run.config(tiny_pipeline, tmp_path / "run", rewards={"recorder:Recorder": 1.0}))
    recorder: Any = importlib.import_module("recorder")
    assert seen == recorder.Recorder.seen == ["false"] and os.environ[name] == "true"


def test_unknown_blocks_are_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    command = small_run.arguments(tiny_pipeline, tmp_path / "run", **SETTINGS)
    blocks = {**FSDP, "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaLayer"}
    codes, texts = ended(launch(2, main, command, logs=tmp_path / "logs", **blocks), tmp_path / "logs")
    assert codes == [2, 2] and any("wraps LlamaLayer" in t and "BasicTransformerBlock" in t for t in texts), texts


def test_other_commands_do_not_shard(sdpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    failed(sdpo("sample", "emoji", "a cat", "-o", "x.png"), "of sdpo only `train` does that")
