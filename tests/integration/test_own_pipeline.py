"""Runs of a pipeline, a reward and prompts that are given in Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import bad_rewards
from helpers.command_line import Run, failed, succeeded
from helpers.pipelines import load_pipeline
from helpers.run_files import rows
from helpers.small_run import config

import sdpo as package
from sdpo import Config, Trainer
from sdpo.errors import UserError

LORA = {"rank": 2, "alpha": 2}


def test_a_run_remembers_where_its_pipeline_came_from(sdpo: Run, tmp_path: Path, tiny_pipeline: Path) -> None:
    Trainer(config(None, tmp_path / "run", epochs=1), pipeline=load_pipeline(tiny_pipeline)).train()
    file = tmp_path / "run" / "config.yaml"
    assert Config.load(file).model.path == str(tiny_pipeline)
    succeeded(sdpo("sample", "run", "cat"))
    file.write_text(file.read_text().replace(str(tiny_pipeline), "emoji"))
    failed(sdpo("sample", "run", "cat"), "cannot be loaded onto this model")

    pipeline = load_pipeline(tiny_pipeline)
    pipeline.register_to_config(_name_or_path=None)
    Trainer(config(None, tmp_path / "nameless", epochs=1), pipeline=pipeline).train()
    failed(sdpo("sample", "nameless", "cat"), "model.path")


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "all weights"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pipeline_in_half_precision_trains(
    tiny_pipeline: Path, tmp_path: Path, dtype: torch.dtype, lora: Any
) -> None:
    settings = config(None, tmp_path / "run", epochs=1, lora=lora)
    trainer = Trainer(settings, pipeline=load_pipeline(tiny_pipeline, dtype))
    assert trainer.config.model.dtype == str(dtype).removeprefix("torch.")
    trained = trainer.parts.backbone.trainable_parameters()
    assert {p.dtype for p in trained.values()} == {torch.float32}
    before = {n: p.detach().clone() for n, p in trained.items()}
    trainer.train()
    after = trainer.parts.backbone.trainable_parameters()
    assert any(not torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "all weights"])
def test_the_base_model_is_the_one_without_what_was_trained(tiny_pipeline: Path, tmp_path: Path, lora: Any) -> None:
    trainer = Trainer(config(None, tmp_path / "run", lora=lora), pipeline=load_pipeline(tiny_pipeline))
    backbone = trainer.parts.backbone
    x, t = torch.randn(1, *backbone.latent_shape), torch.tensor([500])
    with torch.no_grad():
        base = backbone.network(x, t, backbone.encode(["cat"]))
        for parameter in backbone.trainable_parameters().values():
            parameter += 0.1
        tuned = backbone.network(x, t, backbone.encode(["cat"]))
        with backbone.reference():
            assert torch.equal(backbone.network(x, t, backbone.encode(["cat"])), base)
        assert torch.equal(backbone.network(x, t, backbone.encode(["cat"])), tuned)
    assert not torch.allclose(base, tuned)


def test_trackers_end_without_ending_the_processes(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    finished, logged = [], []

    class Tracker:
        def log(self, values: dict[str, Any], step: int | None = None, **rest: Any) -> None:
            logged.append(values)

        def finish(self) -> None:
            finished.append(os.getpid())

    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, *a, **k: setattr(self, "trackers", [Tracker()]))
    monkeypatch.setattr(Accelerator, "end_training", lambda self: pytest.fail("ends the group of processes"))
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: self.trackers[0].log(values, step))
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *a, **k: [])
    settings = config(None, tmp_path / "run", epochs=1, trackers=["tensorboard"], algorithm={"reward_plan": "final"})
    Trainer(settings, pipeline=load_pipeline(tiny_pipeline)).train()
    (row,) = rows(tmp_path / "run")
    assert row["reward/first_step"] is None
    assert logged == [{name: value for name, value in row.items() if value is not None}]
    assert finished == [os.getpid()]


def test_a_reward_given_in_python_is_asked_for_by_name(sdpo: Run, tiny_pipeline: Path, tmp_path: Path) -> None:
    settings = config(None, tmp_path / "run", epochs=1)
    Trainer(settings, pipeline=load_pipeline(tiny_pipeline), reward=bad_rewards.brightness).train()
    failed(sdpo("evaluate", "run", "--steps", "1"), "'brightness' was a Python object", "--reward")
    succeeded(sdpo("evaluate", "run", "--steps", "1", "--reward", "colorfulness"))


def test_a_reward_with_the_name_of_a_built_in_is_never_taken_for_it(
    sdpo: Run, tiny_pipeline: Path, tmp_path: Path
) -> None:
    def colorfulness(images: torch.Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> torch.Tensor:
        return -images.mean((1, 2, 3))

    settings = config(None, tmp_path / "run", epochs=1)
    Trainer(settings, pipeline=load_pipeline(tiny_pipeline), reward=colorfulness).train()
    name = "(in Python) colorfulness"
    assert f"eval/{name}/1" in rows(tmp_path / "run")[0]
    failed(sdpo("evaluate", "run", "--steps", "1"), f"{name!r} was a Python object", "--reward")
    failed(sdpo("train", "run/config.yaml", "--output-dir", "run"), name)

    (tmp_path / "mine.py").write_text("def colorfulness(images, prompts, metadata): return -images.mean((1, 2, 3))\n")
    import mine  # type: ignore[import-not-found]

    settings = config(None, tmp_path / "other", epochs=1)
    Trainer(settings, pipeline=load_pipeline(tiny_pipeline), reward=mine.colorfulness).train()
    table = succeeded(sdpo("evaluate", "other", "--steps", "1", "--images-per-prompt", "1")).stdout
    assert "mine:colorfulness" in table and "-0." in table


def test_a_pipeline_a_reward_and_prompts_given_in_python(tiny_pipeline: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def brightness(images: torch.Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> torch.Tensor:
        seen.extend(prompts)
        return images.mean((1, 2, 3))

    settings, pipeline = config(None, tmp_path / "run", epochs=1, evaluate={"every": 0}), load_pipeline(tiny_pipeline)
    report = Trainer(settings, pipeline=pipeline, reward=brightness, prompts=["a moon", "a sun"]).train()
    assert report.exists() and set(seen) == {"a moon", "a sun"}
    assert "eval/brightness/1" in rows(tmp_path / "run")[0]


def test_the_embedded_model_loads_as_the_readme_says() -> None:
    pipeline = DiffusionPipeline.from_pretrained(package.embedded("emoji"), safety_checker=None)
    image = pipeline("a fox", num_inference_steps=1, guidance_scale=1.0).images[0]
    assert image.size == (64, 64)
    with pytest.raises(UserError, match="there is: emoji"):
        package.embedded("emojis")
