"""The checks of disk and memory, against amounts that the test sets."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sdpo import Config
from sdpo.commands.doctor import resources
from sdpo.commands.doctor.probe import Probe
from sdpo.commands.doctor.resources import check_disk, check_memory, free_memory, judge_memory
from sdpo.estimate.memory import Memory, checkpoint_bytes

CPU = torch.device("cpu")
LEVELS = ((10, "ok"), (1.5, "WARN"), (0.5, "FAIL"))


def test_space_for_checkpoints(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, usage = make_config(), namedtuple("usage", "free")
    need = 5 * checkpoint_bytes(config, 1000) + 4000
    for times, status in LEVELS:
        monkeypatch.setattr(resources.shutil, "disk_usage", lambda path, free=times * need: usage(free))
        assert [finding.status for finding in check_disk(config, 1000)] == [status]
    (tmp_path / "run").write_text("a file")
    assert [finding.status for finding in check_disk(config, 1000)] == ["FAIL"]


def test_free_memory_against_what_training_adds() -> None:
    estimate = Memory(weights=10**12, training=600, trajectories=400)
    for free, status in ((10_000, "ok"), (1200, "WARN"), (500, "FAIL")):
        assert judge_memory(estimate, CPU, free).status == status
    assert judge_memory(estimate, CPU, None).status == "ok"
    found = free_memory(CPU)
    assert found is None or found > 1e6


def test_the_estimate_is_that_of_the_loaded_model(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Memory] = []
    monkeypatch.setattr(resources, "judge_memory", lambda estimate, device, free: seen.append(estimate))
    list(check_memory(probe.parts))
    backbone = probe.parts.backbone
    trained = sum(p.numel() for p in backbone.trainable_parameters().values())
    assert seen[0].training == trained * (4 + 8)
    assert seen[0].weights == 4 * sum(
        p.numel()
        for module in (backbone.network_module, backbone.pipeline.vae, *backbone.text_modules())
        for p in module.parameters()
    )


def test_a_directory_of_another_run_is_found(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(output_dir=str(tmp_path))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert [f.status for f in check_disk(config, 10)] == ["ok", "ok"]
    (tmp_path / "config.yaml").write_text(make_config(output_dir=str(tmp_path), seed=7).to_yaml())
    assert [f.status for f in check_disk(config, 10)] == ["ok", "FAIL"]
