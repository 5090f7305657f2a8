"""Every export loads elsewhere: the model card's own snippet draws the image of `sdpo sample`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers.command_line import Run, failed, succeeded
from helpers.exported_runs import AVERAGED, UNET, TrainRun, drawn, sampled, snippet
from helpers.pipelines import PIPELINES
from helpers.run_files import LORA, lora_weights, rows
from helpers.webuis import a1111, forge, header, settings
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file

from sdpo.commands.export.folder import new_folder

LISTS = {
    "StableDiffusionPipeline": ("SD1", "SD1"),
    "LatentConsistencyModelPipeline": ("SD1", "SD1"),
    "StableDiffusionXLPipeline": ("SDXL", "SDXL"),
    "FluxPipeline": ("SD1", "Flux"),
}
"""The lists in which AUTOMATIC1111, which does not know FLUX.1, and Forge show a LoRA; elsewhere it is `Unknown`."""


@pytest.mark.parametrize("name", PIPELINES)
def test_every_format_of_a_lora_run_loads_elsewhere(
    sdpo: Run, tmp_path: Path, train: TrainRun, pipeline_path: Callable[[str], Path], name: str
) -> None:
    train(pipeline_path(name), name)
    expected = sampled(sdpo)
    for to in ("diffusers", "merged", "comfyui"):
        result = sdpo("export", "run", "--to", to)
        if to == "comfyui" and name == "SanaSprintPipeline":
            failed(result, "ComfyUI reads no LoRA of a SanaSprintPipeline")
            assert not (tmp_path / "run" / "export" / to).exists()
            continue
        succeeded(result)
        assert np.abs(drawn(tmp_path / "run" / "export" / to) - expected).max() <= 2, to
    in_a1111, in_forge = LISTS.get(name, ("Unknown", "Unknown"))
    for file in (tmp_path / "run" / "export").glob("[cd]*/*.safetensors"):
        user = {} if file.name == LORA else settings(file)
        assert forge(header(file), user) == in_forge and header(file)["ss_network_dim"] == "2"
        assert not user or a1111(header(file), user) == in_a1111
    merged = DiffusionPipeline.from_pretrained(tmp_path / "run" / "export" / "merged")
    assert not any("lora" in key for key in getattr(merged, "unet", getattr(merged, "transformer", None)).state_dict())


def test_a_lora_on_every_layer_of_a_unet_has_the_names_of_comfyui(
    sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path
) -> None:
    targets = (
        "[to_q, to_k, to_v, to_out.0, ff.net.0.proj, ff.net.2, proj_in, proj_out, conv_in, conv1, conv2, conv_out]"
    )
    train(tiny_pipeline, UNET, f"lora.targets={targets}", "model.scheduler={beta_end: 0.013}")
    expected = sampled(sdpo)
    succeeded(sdpo("export", "run", "--to", "comfyui", "-o", "comfy"))
    found = load_file(tmp_path / "comfy" / "run-colorfulness-e1.safetensors")
    lora = lora_weights(tmp_path / "run")
    modules = {key.removeprefix("unet.").rsplit(".lora_", 1)[0] for key in lora}
    kinds = ("alpha", "lora_down.weight", "lora_up.weight")
    assert set(found) == {f"lora_unet_{m.replace('.', '_')}.{kind}" for m in modules for kind in kinds}
    assert {float(value) for key, value in found.items() if key.endswith(".alpha")} == {4}
    assert np.abs(drawn(tmp_path / "comfy") - expected).max() <= 2


def test_averaged_and_raw_weights_and_earlier_epochs(
    sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path
) -> None:
    train(tiny_pipeline, UNET, *AVERAGED)
    checkpoint = tmp_path / "run" / "checkpoints"
    cases = {
        "average": ([], "run/lora"),
        "raw": (["--weights", "raw"], "2/weights.safetensors"),
        "raw1": (["--weights", "raw", "--epoch", "1"], "1/weights.safetensors"),
        "average1": (["--epoch", "1"], "1/ema.safetensors"),
    }
    written = {}
    for name, (arguments, source) in cases.items():
        succeeded(sdpo("export", "run", "--to", "diffusers", *arguments, "-o", name))
        written[name] = load_file(tmp_path / name / LORA)
        if name == "average":
            expected = load_file(tmp_path / source / LORA)
        else:
            own = load_file(checkpoint / source)
            expected = {f"unet.{key.replace('.default', '')}": value for key, value in own.items()}
        assert written[name].keys() == expected.keys()
        assert all(torch.equal(written[name][key], expected[key]) for key in expected), name
    key = next(key for key in written["raw"] if "lora_B" in key)
    assert len({tuple(weights[key].flatten().tolist()) for weights in written.values()}) == 4
    assert "after epoch 1's" not in (tmp_path / "average1" / "README.md").read_text()
    assert "not of exactly the ones exported here" in (tmp_path / "raw" / "README.md").read_text()
    drawn(tmp_path / "raw1")

    failed(sdpo("export", "run", "--to", "merged", "--epoch", "7"), "the run keeps those of epoch 1, 2")


def same_weights(folder: Path, checkpoint: Path) -> bool:
    found, expected = load_file(folder / LORA), load_file(checkpoint)
    renamed = {f"unet.{key.replace('.default', '')}": value for key, value in expected.items()}
    return found.keys() == renamed.keys() and all(torch.equal(found[key], value) for key, value in renamed.items())


def test_the_result_of_a_run_that_a_rule_ended(sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path) -> None:
    run = train(tiny_pipeline, UNET, *AVERAGED)
    bound = sum(row["monitor/kl_to_base/2"] for row in rows(run)) / 2
    shutil.rmtree(run)
    train(tiny_pipeline, UNET, *AVERAGED, f"stop_when=[{{metric: monitor/kl_to_base/2, above: {bound}}}]")
    for arguments, words, weights in (
        ((), "the moving average after epoch 1.", "ema"),
        (("--weights", "raw"), "raw, after epoch 1.", "weights"),
    ):
        succeeded(sdpo("export", "run", "--to", "diffusers", *arguments, "-o", weights))
        assert same_weights(tmp_path / weights, run / "checkpoints" / "1" / f"{weights}.safetensors")
        card = (tmp_path / weights / "README.md").read_text()
        assert f"Weights: {words}" in card and "sampling steps, 1 epoch," in card
    shutil.rmtree(run / "checkpoints" / "1")
    gone = sdpo("export", "run", "--to", "diffusers", "--weights", "raw", "-o", "gone")
    failed(gone, "needs the checkpoint of epoch 1, but the run keeps those of epoch 2")


def test_a_result_older_than_the_last_epoch_is_named_by_its_epoch(
    sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path
) -> None:
    settings = ("train.lr_schedule=constant", "evaluate.every=1")
    train(tiny_pipeline, UNET, *settings).rename(tmp_path / "shorter")
    run = train(tiny_pipeline, UNET, *settings, "epochs=2")
    assert "result is that" not in succeeded(sdpo("sample", "run", "cat")).stderr
    shutil.rmtree(run / "lora")
    (tmp_path / "shorter" / "lora").rename(run / "lora")  # as if the run had been interrupted before its end
    succeeded(sdpo("export", "run", "--to", "diffusers", "-o", "out"))
    assert same_weights(tmp_path / "out", run / "checkpoints" / "1" / "weights.safetensors")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Weights: those after epoch 1." in card and "sampling steps, 1 epoch," in card
    said = succeeded(sdpo("sample", "run", "cat")).stderr
    assert "has trained to epoch 2; its result is that of epoch 1" in said
    (run / "lora" / "result.json").write_text('{"epoch": "')
    failed(sdpo("sample", "run", "cat"), "result.json is damaged")


def test_a_run_of_all_weights(sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path) -> None:
    train(tiny_pipeline, UNET, "lora=null", "train.learning_rate=1e-3")
    expected = sampled(sdpo)
    for to in ("diffusers", "merged"):
        succeeded(sdpo("export", "run", "--to", to))
        assert np.abs(drawn(tmp_path / "run" / "export" / to) - expected).max() <= 2
    failed(sdpo("export", "run", "--to", "comfyui"), "use --to merged")
    failed(sdpo("export", "run", "--to", "merged", "--weights", "ema"), "keeps no average")


def test_the_card_is_in_the_hubs_format(sdpo: Run, tmp_path: Path, train: TrainRun) -> None:
    train("emoji", UNET, "model={path: emoji}", "evaluate.images_per_prompt=6")
    succeeded(sdpo("export", "run", "--to", "diffusers", "-o", "out"))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "text-to-image"
    assert {"lora", "sdpo", "colorfulness"} <= set(card.data.tags) and card.data.get("base_model") is None
    assert "| `colorfulness`, training prompts | before | after | gain |" in card.text
    assert re.search(r"\| 2 steps \| [\d.]+ \| [\d.]+ \| [+−][\d.]+ ± [\d.]+ \|", card.text)
    assert {"curves.png", "samples.png", "sdpo_export.json", LORA} < {p.name for p in (tmp_path / "out").iterdir()}
    assert 'embedded("emoji")' in card.text.replace("'", '"')
    assert np.abs(drawn(tmp_path / "out") - sampled(sdpo)).max() <= 2


def test_files_of_the_user_are_never_overwritten(
    sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path
) -> None:
    train(tiny_pipeline, UNET)
    command = ("export", "run", "--to", "diffusers", "-o", "out")
    succeeded(sdpo(*command))
    (tmp_path / "out.tmp").mkdir()
    succeeded(sdpo(*command))  # replaces its own export
    assert {p.name for p in tmp_path.iterdir()} == {"run", "out", "out.tmp"}
    (tmp_path / "out" / "notes.txt").write_text("mine")
    failed(sdpo(*command), "holds notes.txt")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine" and (tmp_path / "out" / LORA).exists()
    (tmp_path / "file").write_text("mine")
    failed(sdpo("export", "run", "--to", "merged", "-o", "file"), "is a file")
    failed(sdpo("export", "nowhere", "--to", "merged"), "is not a run's directory")


def test_an_export_that_is_killed_leaves_the_earlier_one(
    sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_pipeline, UNET)
    command = ("export", "run", "--to", "diffusers", "-o", "out")
    succeeded(sdpo(*command))
    (tmp_path / "out.old").mkdir()
    names = {p.name for p in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "README.md").write_text("the earlier one")

    class Killed(BaseException):
        pass

    def kill(new: Path, target: Path) -> Path:
        if target.name == "out":
            raise Killed
        return rename(new, target)

    rename = Path.rename
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", kill)
        patch.setattr(Path, "replace", kill)
        sdpo(*command)
    with new_folder(tmp_path / "out"):
        assert {p.name for p in (tmp_path / "out").iterdir()} == names
        assert (tmp_path / "out" / "README.md").read_text() == "the earlier one"
    assert {p.name for p in tmp_path.iterdir()} == {"run", "out", "out.old"}


def test_push_to_hub(
    sdpo: Run, tmp_path: Path, train: TrainRun, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_pipeline, UNET)
    command = ("export", "run", "--to", "diffusers", "--push-to-hub", "me/tuned")
    failed(sdpo(*command), "HF_HUB_OFFLINE is set")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    failed(sdpo(*command), "hf auth login")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    failed(sdpo(*command[:-1], "tuned"), "expected USER/NAME")
    assert not (tmp_path / "run" / "export").exists()

    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(HfApi, "create_repo", lambda _, repo, exist_ok: calls.append(("create", repo)))

    def upload(_: HfApi, repo_id: str, folder_path: Path, ignore_patterns: list[str]) -> None:
        calls.append(("upload", {p.name for p in Path(folder_path).iterdir()} - set(ignore_patterns)))

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert "https://huggingface.co/me/tuned" in succeeded(sdpo(*command)).stdout
    assert calls == [("create", "me/tuned"), ("upload", {"README.md", "curves.png", "samples.png", "images", LORA})]
    assert "pipeline.load_lora_weights('me/tuned'" in snippet(tmp_path / "run" / "export" / "diffusers")

    def no_network(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(HfApi, "create_repo", no_network)
    failed(sdpo(*command), "no route to the hub", "hf upload me/tuned")
