"""What an evaluation says is what a user gets: the pipeline's own pictures, under conditions that stand beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from helpers.command_line import Run, failed, succeeded
from helpers.run_files import evaluation, rows
from helpers.trained_runs import TrainedRuns
from PIL import Image

from sdpo.cli.main import main
from sdpo.report.reader import read_run


@pytest.fixture
def run(trained_runs: TrainedRuns, tmp_path: Path, tiny_overrides: list[str]) -> Path:
    return trained_runs.copy(tmp_path / "run", "emoji", *tiny_overrides)


def tiles(run: Path, epoch: int, steps: int) -> list[np.ndarray[Any, Any]]:
    strip = np.array(Image.open(run / "evaluation" / f"epoch_{epoch:04d}" / f"steps_{steps}.png"))
    return np.split(strip, strip.shape[1] // strip.shape[0], axis=1)


def change(run: Path, name: str, **values: Any) -> None:
    """Change entries of an evaluation's record; None removes one."""
    file = run / "evaluation" / name
    record = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def without_conditions(run: Path) -> None:
    """Make the run one that an earlier version wrote: its evaluations do not say how they were made."""
    for file in (run / "evaluation").glob("*.json"):
        change(run, file.name, conditions=None, weights=None, training_sampler=None)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text("".join(x for x in config.splitlines(True) if not x.startswith("  eta: null")))


@pytest.mark.parametrize("epoch", [0, 2])
def test_the_pictures_are_those_of_the_pipelines_own_call(run: Path, tiny_pipeline: Path, epoch: int) -> None:
    record = evaluation(run, epoch)
    pipeline = DiffusionPipeline.from_pretrained(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    if epoch:
        pipeline.load_lora_weights(run / "lora", weight_name="pytorch_lora_weights.safetensors")
    for steps in (1, 2):
        shown = tiles(run, epoch, steps)
        assert len(shown) == len(record["prompts"]) == 3
        for prompt, seed, tile in zip(record["prompts"], record["seeds"], shown, strict=True):
            (image,) = pipeline(
                prompt,
                num_inference_steps=steps,
                guidance_scale=1.0,
                generator=torch.Generator().manual_seed(seed),
                height=tile.shape[0],
                width=tile.shape[1],
            ).images
            assert np.abs(np.array(image).astype(int) - tile.astype(int)).max() <= 2


def test_a_record_holds_what_its_scores_depend_on(run: Path, tiny_pipeline: Path) -> None:
    base, tuned = evaluation(run, 0), evaluation(run, 2)
    assert base["conditions"] == tuned["conditions"]
    conditions = base["conditions"]
    assert conditions["sampler"] == "own" and conditions["eta"] == 0 and conditions["guidance_scale"] == 1
    assert conditions["scheduler"]["class"] == "DDIMScheduler"
    assert conditions["scheduler"]["timestep_spacing"] == "trailing"
    assert conditions["model"]["path"] == str(tiny_pipeline) and conditions["dtype"] == "float32"
    assert {"sdpo", "torch", "diffusers", "transformers"} <= conditions["versions"].keys()
    assert base["weights"] == {"model": "base", "averaged": False, "lora_strength": 1.0}
    assert tuned["weights"]["model"] == "trained"
    both = base["training_sampler"]
    assert both["conditions"]["sampler"] == "training" and both["conditions"]["eta"] == 1
    assert both["seeds"] == base["seeds"] and both["scores"] != base["scores"]
    assert "training_sampler" in tuned and "training_sampler" not in evaluation(run, 1)
    text = (run / "report.html").read_text()
    assert "sampler (DDIMScheduler, deterministic)" in text and "the training sampler (η = 1)" in text


def test_evaluate_draws_by_the_sampler_that_eta_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {}
    for eta in (None, "own", "training", "1", "0.5"):
        words = ["evaluate", str(run), "--steps", "1,2", "--images-per-prompt", "1"]
        assert main([*words, *(["--eta", eta] if eta else [])]) == 0
        file = "evaluation.json" if eta in (None, "own") else f"evaluation-eta-{1 if eta == 'training' else eta}.json"
        found[str(eta)] = json.loads((run / file).read_text())
        assert found[str(eta)]["sampler"] in " ".join(capsys.readouterr().out.split())
    own, training = found["own"], found["training"]
    assert found["None"] == own and found["1"] == training
    assert own["seeds"] == training["seeds"] and own["conditions"]["steps"] == [1, 2]
    # At one step the two differ by DDIM's final noise level alone, which the pipeline leaves in the image.
    assert own["base"]["colorfulness"]["1"] == pytest.approx(training["base"]["colorfulness"]["1"], rel=0.05)
    values = [found[eta]["base"]["colorfulness"]["2"] for eta in ("own", "training", "0.5")]
    assert len({tuple(value) for value in values}) == 3
    assert own["base"]["colorfulness"]["2"] == pytest.approx(evaluation(run, 0)["scores"]["colorfulness"]["2"])
    assert own["after"]["colorfulness"]["2"] == pytest.approx(evaluation(run, 2)["scores"]["colorfulness"]["2"])
    assert own["weights"]["base"]["model"] == "base" and own["weights"]["after"]["model"] == "trained"


def test_results_by_two_samplers_lie_side_by_side(run: Path) -> None:
    words = ["evaluate", str(run), "--steps", "1", "--images-per-prompt", "1"]
    config = (run / "config.yaml").read_text()
    for run_draws_by, files in (
        ("null", {None: "evaluation.json", "own": "evaluation.json", "1": "evaluation-eta-1.json"}),
        ("1.0", {None: "evaluation.json", "training": "evaluation.json", "own": "evaluation-own.json"}),
    ):
        (run / "config.yaml").write_text(config.replace("  eta: null", f"  eta: {run_draws_by}"))
        for eta, name in files.items():
            for file in run.glob("evaluation*.json"):
                file.unlink()
            assert main([*words, *(["--eta", eta] if eta else [])]) == 0
            assert [file.name for file in run.glob("evaluation*.json")] == [name]


def test_the_images_of_a_prompt_are_the_same_in_every_list(run: Path, tmp_path: Path) -> None:
    scores = []
    for order in ("ab", "ba"):
        file = tmp_path / f"{order}.txt"
        file.write_text("\n".join({"a": "a red cat", "b": "a dog"}[letter] for letter in order))
        out = tmp_path / f"{order}.json"
        words = ["evaluate", str(run), "--prompts", str(file), "--steps", "2", "--output", str(out)]
        assert main([*words, "--images-per-prompt", "2"]) == 0
        found = json.loads(out.read_text())
        values = found["after"]["colorfulness"]["2"]
        scores.append(dict(zip(zip(found["prompts"], found["seeds"], strict=True), values, strict=True)))
    assert scores[0] == pytest.approx(scores[1]) and len(scores[0]) == 4


def test_an_unknown_sampler_is_refused(sdpo: Run, run: Path) -> None:
    for eta in ("2", "-1", "none", "nan"):
        failed(sdpo("evaluate", str(run), "--eta", eta), "own, training, or a number in 0 … 1")


def test_evaluations_of_other_conditions_are_left_out_and_named(run: Path) -> None:
    conditions = evaluation(run, 0)["conditions"]
    change(run, "epoch_0000.json", conditions={**conditions, "guidance_scale": 2.0})
    found = read_run(run)
    assert [e.epoch for e in found.evaluations] == [1, 2] and found.base is None
    assert any("epoch 0 are left out" in note and "guidance_scale (2.0 and 1.0)" in note for note in found.notes)
    change(run, "epoch_0000.json", conditions={**conditions, "versions": {"torch": "1.0"}})
    assert read_run(run).base is not None, "versions are recorded, not compared"


def test_a_run_of_an_earlier_version_gets_its_base_model_evaluated_anew(
    sdpo: Run, run: Path, tiny_overrides: list[str]
) -> None:
    complete = evaluation(run, 0)
    without_conditions(run)
    old = json.loads((run / "evaluation" / "epoch_0000.json").read_text())
    words = [word for word in tiny_overrides if word != "epochs=2"]
    done = succeeded(sdpo("train", "emoji", *words, "epochs=3", "--output-dir", str(run)))
    assert "the base model is evaluated anew" in done.stderr
    base = json.loads((run / "evaluation" / "base.json").read_text())
    assert base["scores"] == complete["scores"] and base["weights"]["model"] == "base"
    assert json.loads((run / "evaluation" / "epoch_0000.json").read_text()) == old
    assert "eval_gain" in rows(run)[-1]
    found = read_run(run)
    assert found.base is not None and found.base.conditions == found.evaluations[-1].conditions
    assert any("epoch 0, 1, 2 are left out" in note for note in found.notes)


def test_a_run_that_evaluates_other_prompts_from_now_on_gets_its_base_model_evaluated_anew(
    sdpo: Run, run: Path, tiny_overrides: list[str]
) -> None:
    words = [word for word in tiny_overrides if word != "epochs=2"]
    settings = ["epochs=3", "evaluate.prompts=[a red cat, a blue dog]"]
    done = succeeded(sdpo("train", "emoji", *words, *settings, "--output-dir", str(run)))
    assert "evaluated anew" in done.stderr and "prompts or seeds" in done.stderr
    end, base = evaluation(run, 3), json.loads((run / "evaluation" / "base.json").read_text())
    assert (end["prompts"], end["seeds"]) == (base["prompts"], base["seeds"])
    changes = [
        np.mean(np.subtract(end["scores"]["colorfulness"][s], base["scores"]["colorfulness"][s]))
        / (np.std(base["scores"]["colorfulness"][s]) + 1e-8)
        for s in ("1", "2")
    ]
    assert rows(run)[-1]["eval_gain"] == pytest.approx(np.mean(changes))
    found = read_run(run)
    assert [e.epoch for e in found.evaluations] == [3] and found.base is not None
    assert any("epoch 0, 1, 2 are left out, as they differ in prompts or seeds" in note for note in found.notes)


def test_a_run_from_a_lora_is_compared_with_the_bare_base_model(
    sdpo: Run, run: Path, tmp_path: Path, tiny_overrides: list[str]
) -> None:
    rule = "stop_when=[{metric: eval/colorfulness/1, below: 0.001, relative_to: base}]"
    settings = ["train", "emoji", *tiny_overrides, "epochs=1", "lora={rank: 2, alpha: 4}", rule]
    succeeded(sdpo(*settings, f"lora.path={run / 'lora'}", "--output-dir", "more"))
    more = tmp_path / "more"
    base = json.loads((more / "evaluation" / "base.json").read_text())
    start = evaluation(more, 0)
    assert base["weights"]["model"] == "base" and start["weights"]["model"] == "start"
    assert base["scores"] == evaluation(run, 0)["scores"]
    assert start["scores"] != base["scores"]
    assert base["monitors"]["kl_to_base"]["1"] == 0 < start["monitors"]["kl_to_base"]["1"]
    found = read_run(more)
    assert found.base is not None and found.base.seen.mean("colorfulness", 1) == pytest.approx(
        np.mean(base["scores"]["colorfulness"]["1"])
    )
    assert found.start is not None and found.start.epoch == 0
    page = (more / "report.html").read_text()
    assert "Before: the LoRA that the run starts from" in page
    gain, std = rows(more)[-1]["eval_gain"], [np.std(base["scores"]["colorfulness"][s]) for s in ("1", "2")]
    end = evaluation(more, 1)["scores"]["colorfulness"]
    differences = [np.mean(end[s]) - np.mean(base["scores"]["colorfulness"][s]) for s in ("1", "2")]
    assert gain == pytest.approx(np.mean([d / (s + 1e-8) for d, s in zip(differences, std, strict=True)]))


def test_a_resumed_run_with_other_evaluated_prompts_gets_its_base_model_evaluated_anew(
    sdpo: Run, run: Path, tiny_overrides: list[str]
) -> None:
    words = [word for word in tiny_overrides if word != "epochs=2"]
    done = succeeded(sdpo("train", "emoji", *words, "epochs=3", "evaluate.prompts=[owl]", "--output-dir", str(run)))
    assert "evaluated anew, as its evaluation cannot be compared with the next ones: prompts or seeds" in done.stderr
    assert json.loads((run / "evaluation" / "base.json").read_text())["prompts"] == ["owl"]
    assert "eval_gain" in rows(run)[-1]


def test_a_run_of_all_weights_is_evaluated_beside_its_base_model(
    sdpo: Run, tmp_path: Path, tiny_overrides: list[str]
) -> None:
    """The tuned model is a pipeline of its own, whose scheduler and size must be those of the run."""
    settings = ["lora=null", "epochs=1", "model.scheduler={timestep_spacing: trailing, set_alpha_to_one: true}"]
    succeeded(sdpo("train", "emoji", *tiny_overrides, *settings, "--output-dir", "all"))
    succeeded(sdpo("evaluate", "all", "--steps", "1,2", "--images-per-prompt", "1"))
    found = json.loads((tmp_path / "all" / "evaluation.json").read_text())
    assert found["after"]["colorfulness"]["2"] == pytest.approx(
        evaluation(tmp_path / "all", 1)["scores"]["colorfulness"]["2"], rel=1e-4
    )
    assert found["conditions"]["scheduler"]["set_alpha_to_one"] is True


def test_a_run_of_an_earlier_version_that_started_from_a_lora_has_no_base_model_in_its_report(run: Path) -> None:
    without_conditions(run)
    assert read_run(run).base is not None and read_run(run).start is None
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["lora"]["path"] = "other/lora"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    found = read_run(run)
    assert found.base is None and found.start is not None and found.start.epoch == 0
