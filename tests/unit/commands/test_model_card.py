"""The text of a model card: code that nothing can break out of, and only what was measured."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.written_runs import write_run

from sdpo.commands.model_card import Exported, render_card
from sdpo.config.schema import Config
from sdpo.report.reader import Run, read_run

EXPORTED = Exported(
    "name", "some/where", None, "those after epoch 2", True, 2, "a cat", 4, "DDIMScheduler", 1.0,
    {"height": 64, "width": 96},
)  # fmt: skip
LORA = dataclasses.replace(EXPORTED, weight_name="tuned.safetensors")


def front_matter(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def on_base(path: str) -> Config:
    config = Config.load("emoji")
    return config.model_copy(update={"model": config.model.model_copy(update={"path": path})})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_run(write_run(tmp_path / "run", {1: [0.2, 0.4, 0.6]}))


def test_backticks_in_settings_stay_within_the_code(run: Run) -> None:
    prompts = ["````", "a `cat`"]
    config = Config.load("emoji", overrides=None, prompts={"train": prompts})
    card = render_card(run, config, EXPORTED)
    fences = re.findall(r"^(`{3,})(\w*)$", card, re.MULTILINE)
    assert fences == [("```", "python"), ("```", ""), ("`````", "yaml"), ("`````", "")]


def test_a_model_path_with_backticks_is_one_code_span(run: Run, tmp_path: Path) -> None:
    assert "``` owner/a``b ``` aligned with the reward" in render_card(run, on_base("owner/a``b"), EXPORTED)


def test_scores_and_costs_of_the_exported_epoch(run: Run) -> None:
    card = render_card(run, Config.load("emoji"), EXPORTED)
    assert "2 epochs, 200 samples, 600 reward queries. Weights: those after epoch 2." in card
    assert "Scores of the base model and of the tuned model after epoch 2. Images were drawn by the training " in card
    heading = "| `aesthetic`, training prompts | before | after | gain |\n|---|---|---|---|\n"
    assert re.search(re.escape(heading) + r"\| 1 step \| 0\.30* \| 0\.70* \| \+0\.40* ± 0\.0+ \|\n\n", card)
    other = render_card(run, Config.load("emoji"), dataclasses.replace(EXPORTED, as_evaluated=False))
    assert "not of exactly the ones exported here" in other


def test_a_run_that_was_not_evaluated_has_no_tables(run: Run) -> None:
    card = render_card(dataclasses.replace(run, evaluations=[]), Config.load("emoji"), EXPORTED)
    assert "This run was not evaluated before and after training." in card and "|---|" not in card


@pytest.mark.parametrize(
    ("path", "licence"),
    [
        ("emoji", {"license": "mit"}),
        ("Tongyi-MAI/Z-Image-Turbo", {"license": "apache-2.0"}),
        (
            "owner/model",
            {
                "license": "other",
                "license_name": "license-of-the-base-model",
                "license_link": "https://huggingface.co/owner/model",
            },
        ),
    ],
)
def test_the_licence_is_the_base_models(run: Run, path: str, licence: dict[str, str]) -> None:
    found = front_matter(render_card(run, on_base(path), LORA))
    assert {key: value for key, value in found.items() if key.startswith("license")} == licence


def test_the_licence_of_a_local_model_is_that_of_its_card(run: Run, tiny_pipeline: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_pipeline, tmp_path / "model")
    for text, licence in (
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: [1, 2]\n---\n", "unknown"),
        ("---\n{\n---\n", "unknown"),
        ("# A model\n", "unknown"),
    ):
        (model / "README.md").write_text(text)
        assert front_matter(render_card(run, on_base(str(model)), LORA))["license"] == licence
    (model / "README.md").unlink()
    assert front_matter(render_card(run, on_base(str(model)), LORA))["license"] == "unknown"


def test_a_lora_has_the_hubs_template_and_no_instance_prompt(run: Run) -> None:
    images = [("a cat", "images/0.png"), ("a: dog", "images/1.png")]
    card = render_card(run, Config.load("emoji"), dataclasses.replace(LORA, images=images))
    found = front_matter(card)
    assert found["instance_prompt"] is None and "template:diffusion-lora" in found["tags"]
    assert found["widget"] == [{"text": text, "output": {"url": file}} for text, file in images]
    assert "<Gallery />" in card and "- LoRA strength: 1\n" in card
    whole = front_matter(render_card(run, Config.load("emoji"), EXPORTED))
    assert not {"instance_prompt", "widget"} & whole.keys() and "template:diffusion-lora" not in whole["tags"]


def test_the_settings_that_the_weights_are_used_with(run: Run) -> None:
    exported = dataclasses.replace(EXPORTED, guidance_scale=4.5, dtype="bfloat16", rounding=0.4761)
    card = render_card(run, Config.load("emoji"), exported)
    for line in ("sampling steps: 4", "sampler: `DDIMScheduler`", "guidance scale: 4.5", "height × width: 64 × 96"):
        assert f"- {line}\n" in card
    assert "LoRA strength" not in card and "differ from the LoRA's by 48 %" in card and "dtype=torch.bfloat16" in card
    assert "Rounding" not in render_card(run, Config.load("emoji"), EXPORTED)
