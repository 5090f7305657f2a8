"""Shared fixtures: the real command line, and a pipeline small enough to train in a second."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test may look for a network
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: the workers share the cores
pytest.register_assert_rewrite("helpers")  # before a fixture imports them, or sdpo, for which the same holds

if TYPE_CHECKING:
    from helpers.command_line import Run
    from helpers.trained_runs import TrainedRuns


@pytest.fixture(scope="session")
def pipeline_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Pipelines of random weights on disk by class name, each written when it is first asked for."""
    from helpers.pipelines import write_pipeline

    written: dict[str, Path] = {}

    def path(name: str) -> Path:
        if name not in written:
            written[name] = write_pipeline(name, tmp_path_factory.mktemp("model") / name)
        return written[name]

    return path


@pytest.fixture(scope="session")
def tiny_pipeline(pipeline_path: Callable[[str], Path]) -> Path:
    """A StableDiffusionPipeline of random weights on disk, with the embedded model's tokenizer."""
    return pipeline_path("StableDiffusionPipeline")


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> TrainedRuns:
    """Finished runs for tests that begin with one."""
    from helpers.trained_runs import TrainedRuns

    return TrainedRuns(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def tiny_overrides(tiny_pipeline: Path) -> list[str]:
    """Overrides that make a run of `emoji` take seconds."""
    return [
        f"model.path={tiny_pipeline}",
        "epochs=2",
        "lora={rank: 2, alpha: 4}",
        "prompts={train: [cat, dog, fox], unseen: null}",
        "rewards={colorfulness: 1.0}",
        "sample={num_steps: 3, prompts_per_epoch: 8}",
        "train={batch_size: 4, learning_rate: 1.0e-3}",
        "evaluate={every: 1, steps: [1, 2], images_per_prompt: 1, judge: null}",
    ]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def sdpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line's entry point, in an empty directory. Starting Python for each call would cost minutes."""
    from sdpo.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        sys.modules.pop("mine", None)
        capsys.readouterr()
        try:
            code = main(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, output.out, output.err)

    return run
