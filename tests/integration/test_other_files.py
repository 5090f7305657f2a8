"""No command overwrites or deletes a file that sdpo did not write."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import bad_rewards
from helpers.command_line import Run, failed, succeeded
from helpers.pipelines import load_pipeline
from helpers.run_files import contents
from helpers.written_runs import write_run
from PIL import Image

from sdpo import Config, Trainer, UserError

CURVES = {1: [0.2, 0.4], 4: [0.4, 0.4]}


def refused(sdpo: Run, folder: Path, *arguments: str, word: str = "cannot be written") -> None:
    """Assert that a command fails with a word in its message and changes nothing in the folder."""
    before = contents(folder)
    failed(sdpo(*arguments), word)
    assert contents(folder) == before


@pytest.fixture
def command(tiny_overrides: list[str]) -> list[str]:
    return ["train", "emoji", *tiny_overrides, "epochs=1"]


def test_training_in_a_directory_of_the_users(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    project = tmp_path / "proj"
    for name in ("config.yaml", "metrics.jsonl", "lora/pytorch_lora_weights.safetensors", "evaluation/epoch_x.json"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("mine\n")
    for more in ([], ["--dry-run"]):
        refused(
            sdpo, tmp_path, *command, "--output-dir", "proj", *more, word="holds config.yaml, evaluation, lora and 1"
        )
    assert "output_dir" in sdpo("doctor", *command[1:], "output_dir=proj").stdout


def test_the_base_model_is_never_replaced_by_the_tuned_one(
    sdpo: Run, tmp_path: Path, command: list[str], tiny_pipeline: Path
) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "proj" / "model")
    settings = ["lora=null", "train.learning_rate=1e-6", "--output-dir", "proj"]
    refused(sdpo, tmp_path, *command, "model.path=proj/model", *settings, word="which the run would replace")
    pipeline = load_pipeline(tmp_path / "proj" / "model")
    config = Config.load("emoji", command[2:], lora=None, output_dir=str(tmp_path / "proj"))
    with pytest.raises(UserError, match="which the run would replace"):
        Trainer(config, pipeline=pipeline)


def test_a_run_is_replaced_by_itself_alone(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    """Also where its checkpoints were deleted to save space; the same run may begin again."""
    succeeded(sdpo(*command, "--output-dir", "run"))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "lora" / "notes.txt").write_text("mine")
    refused(sdpo, tmp_path, *command, "seed=7", "--output-dir", "run", word="seed: 42 → 7")
    refused(sdpo, tmp_path, *command, "lora.path=run/lora", "--output-dir", "run", word="which the run would replace")
    succeeded(sdpo(*command, "--output-dir", "run"))
    assert (tmp_path / "run" / "lora" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("left", [".lock", "environment.json.tmp", "result.tmp"])
def test_a_run_that_failed_early_or_was_interrupted_resumes(
    sdpo: Run, tmp_path: Path, command: list[str], left: str
) -> None:
    reward = f"rewards={{'{bad_rewards.path_to('raises')}': 1.0}}"
    failed(sdpo(*command, reward, "--output-dir", "run"), "the judge is asleep")
    (tmp_path / "run" / left).mkdir() if left == "result.tmp" else (tmp_path / "run" / left).write_text("")
    succeeded(sdpo(*command, "--output-dir", "run"))
    assert (tmp_path / "run" / "lora" / "result.json").is_file()


def test_reports_and_comparisons(sdpo: Run, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, CURVES, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    for name in ("report.html", "curves.png", "samples.png"):
        (tmp_path / "a" / name).write_text("mine")
        refused(sdpo, tmp_path, "report", "a")
        (tmp_path / "a" / name).unlink()
    for _ in range(2):
        succeeded(sdpo("report", "a"))
    output = ["compare", *map(str, runs), "--output-dir", "all"]
    for name in ("comparison.html", "comparison.csv", "comparison.md", "compare.png", "compare_queries.png"):
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / "all" / name).write_text("mine")
        refused(sdpo, tmp_path, *output)
        refused(sdpo, tmp_path, "compare", "emoji", "--algorithms", "sdpo,ddpo", "--output-dir", "all")
        (tmp_path / "all" / name).unlink()
    for _ in range(2):
        succeeded(sdpo(*output))


def test_outputs_of_the_other_commands(sdpo: Run, tmp_path: Path, tiny_pipeline: Path, command: list[str]) -> None:
    (tmp_path / "notes.md").write_text("mine")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "photo.png")
    model = str(tiny_pipeline)
    evaluate = ["evaluate", model, "--steps", "1", "--reward", "colorfulness", "--images-per-prompt", "1", "--output"]
    score = ["score", "--reward", "colorfulness", "photo.png", "-o"]
    sample = ["sample", model, "cat", "--steps", "1", "-o"]
    bench = ["bench", *command[1:], "--repetitions", "1"]
    for words in (evaluate, score, [*bench, "-o"], [*bench, "--profile"]):
        refused(sdpo, tmp_path, *words, "notes.md")
        refused(sdpo, tmp_path, *words, "no/such/folder.json")
    for name in ("notes.md", "photo.png"):
        refused(sdpo, tmp_path, *sample, name)
    for words, name in (
        (evaluate, "e.json"),
        (score, "s.json"),
        (sample, "x.png"),
        (sample, "x.jpg"),
        (sample, "x.webp"),
    ):
        for _ in range(2):
            succeeded(sdpo(*words, name))
    for words, name in ((evaluate, "s.json"), (score, "e.json"), ([*bench, "-o"], "e.json")):
        refused(sdpo, tmp_path, *words, name)


def test_an_evaluation_of_a_run_replaces_evaluations_alone(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    succeeded(sdpo(*command, "--output-dir", "run"))
    evaluate = ["evaluate", "run", "--steps", "1", "--images-per-prompt", "1"]
    (tmp_path / "run" / "evaluation.json").write_text("mine")
    refused(sdpo, tmp_path, *evaluate)
    (tmp_path / "run" / "evaluation.json").unlink()
    succeeded(sdpo(*evaluate))
    assert "in place of its earlier contents" in sdpo(*evaluate).stdout
