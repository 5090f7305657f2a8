"""The files of an export that other programs show, and the rounding of a merged model."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.command_line import Run, failed, succeeded
from helpers.exported_runs import AVERAGED, UNET, TrainRun, drawn
from helpers.run_files import LORA, contents
from helpers.webuis import header, settings
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

NAME = "run-colorfulness-e1"


def test_the_files_beside_a_lora_for_comfyui(sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path) -> None:
    train(tiny_pipeline, UNET)
    succeeded(sdpo("export", "run", "--to", "comfyui", "-o", "out"))
    lora = tmp_path / "out" / f"{NAME}.safetensors"
    assert header(lora)["ss_output_name"] == header(lora)["modelspec.title"] == NAME
    user = settings(lora)
    assert user["sd version"] == "SD1" and user["activation text"] == "" and user["preferred weight"] == 1.0
    assert "reward colorfulness" in user["description"] and "Steps 2" in user["notes"]
    with Image.open(tmp_path / "out" / f"{NAME}.png") as preview:
        assert preview.format == "PNG" and min(preview.size) >= 256
    workflow = json.loads((tmp_path / "out" / f"{NAME}.workflow.json").read_text())
    values = {node["type"]: node["widgets_values"] for node in workflow["nodes"]}
    assert values["LoraLoaderModelOnly"] == [lora.name, 1.0] and values["KSampler"][2] == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"`{NAME}.workflow.json`" in card and "In AUTOMATIC1111 or Forge" in card


def test_equal_exports_are_equal_files(sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path) -> None:
    train(tiny_pipeline, UNET)
    os.utime(tmp_path / "run" / "lora" / "result.json", (1_772_000_000, 1_772_000_000))
    for to in ("comfyui", "diffusers"):
        command = ("export", "run", "--to", to, "-o", "out")
        succeeded(sdpo(*command))
        first = contents(tmp_path / "out")
        (lora,) = (tmp_path / "out").glob("*.safetensors")
        assert header(lora)["modelspec.date"] == "2026-02-25T06:13:20Z"
        succeeded(sdpo(*command))
        assert contents(tmp_path / "out") == first
    assert "lora_adapter_metadata" in header(tmp_path / "out" / LORA)
    assert "modelspec.title" not in header(tmp_path / "run" / "lora" / LORA)


def test_exports_of_a_run_have_names_of_their_own(
    sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path
) -> None:
    (tmp_path / "mine.py").write_text("def redness(images, *_):\n    return images[:, 0].mean((1, 2))\n")
    rewards = "rewards={'mine:redness': 1.0, colorfulness: 0.5}"
    train(tiny_pipeline, UNET, *AVERAGED, rewards)
    for arguments in ((), ("--weights", "raw"), ("--epoch", "1")):
        succeeded(sdpo("export", "run", "--to", "comfyui", *arguments, "-o", "-".join(("out", *arguments))))
    start = "run-mine_redness-colorfulness"
    names = {path.name for path in tmp_path.glob("out*/*.safetensors")}
    assert names == {f"{start}-e{end}.safetensors" for end in ("2", "2-raw", "1")}


def test_the_card_of_a_lora_has_what_the_hub_shows(
    sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path
) -> None:
    model = shutil.copytree(tiny_pipeline, tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n# A model\n")
    train(model, UNET, "evaluate.images_per_prompt=2")
    succeeded(sdpo("export", "run", "--to", "diffusers", "-o", "out"))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "mine")
    assert "template:diffusion-lora" in card.data.tags
    text = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"^instance_prompt: null$", text, re.MULTILINE)
    widget = card.data.to_dict()["widget"]
    assert [entry["text"] for entry in widget] == ["cat", "dog"]
    pictures = [tmp_path / "out" / entry["output"]["url"] for entry in widget]
    assert len({picture.read_bytes() for picture in pictures}) == 2
    rows = dict(re.findall(r"^- ([\w ×]+): (.+)$", card.text, re.MULTILINE))
    assert rows["sampling steps"] == "2" and rows["sampler"] == "`DDIMScheduler`"
    assert rows["guidance scale"] == "1 (none)" and rows["LoRA strength"] == "1" and "<Gallery />" in card.text


def distance(merged: Path, base: Path, lora: Path, alpha: float) -> float:
    """‖(merged − base) − (α / r) · B · A‖ / ‖(α / r) · B · A‖ over the layers of the LoRA, read from the files."""
    after, before = (load_file(path / "unet" / "diffusion_pytorch_model.safetensors") for path in (merged, base))
    matrices = load_file(lora)
    lost = total = 0.0
    for key in (key for key in matrices if key.endswith(".lora_A.weight")):
        name = key.removeprefix("unet.").removesuffix(".lora_A.weight")
        up, down = matrices[key.replace("lora_A", "lora_B")], matrices[key]
        change = alpha / len(down) * up @ down
        dtype = after[f"{name}.weight"].dtype
        found = after[f"{name}.weight"].float() - before[f"{name}.weight"].bfloat16().to(dtype).float()
        lost += (found - change).square().sum().item()
        total += change.square().sum().item()
    return (lost / total) ** 0.5


def test_a_merged_model_says_how_far_rounding_takes_it_from_its_adapter(
    sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path
) -> None:
    train(tiny_pipeline, UNET, "model.dtype=bfloat16", "train.learning_rate=3e-4")
    result = succeeded(sdpo("export", "run", "--to", "merged", "-o", "out"))
    expected = distance(tmp_path / "out", tiny_pipeline, tmp_path / "run" / "lora" / LORA, 4)
    assert expected > 0.05
    said = re.search(r"rounding to bfloat16: the merged change differs from the LoRA's by (\d+) %", result.stdout)
    assert said and int(said[1]) == pytest.approx(100 * expected, rel=0.06)
    assert "--dtype float32" in result.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"differ from the LoRA's by {said[1]} %" in card and "dtype=torch.bfloat16" in card
    result = succeeded(sdpo("export", "run", "--to", "merged", "--dtype", "float32", "-o", "out"))
    assert "less than 0.01 %" in result.stdout and "--dtype" not in result.stderr
    assert distance(tmp_path / "out", tiny_pipeline, tmp_path / "run" / "lora" / LORA, 4) < 1e-4
    weights = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert "dtype=torch.float32" in (tmp_path / "out" / "README.md").read_text()
    drawn(tmp_path / "out")


def test_the_data_type_is_that_of_a_merged_model(
    sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path
) -> None:
    train(tiny_pipeline, UNET, "lora=null", "train.learning_rate=1e-3")
    failed(sdpo("export", "run", "--to", "diffusers", "--dtype", "float32"), "use it with --to merged")
    result = succeeded(sdpo("export", "run", "--to", "merged", "--dtype", "bfloat16", "-o", "out"))
    assert "rounding" not in result.stdout + result.stderr
    weights = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    drawn(tmp_path / "out")
