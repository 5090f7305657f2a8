"""Pipelines whose files lack tensors, have more, or know them by other names: refused by name, or loaded right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers.command_line import Run
from helpers.family_runs import Pipelines, image_of, overrides
from helpers.flow_pipelines import SIDE
from helpers.pipelines import PIPELINES
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdpo.backbones import load_backbone, wrap_pipeline
from sdpo.errors import UserError

State = dict[str, Tensor]
SD = "StableDiffusionPipeline"
TEXT_ENCODERS = ["text_encoder", "text_encoder_2", "text_encoder_3"]


def components(model: Path) -> dict[str, Path]:
    """The weight file of each part, by the part's name."""
    return {file.parent.name: file for file in sorted(model.glob("*/*.safetensors"))}


def rewrite(file: Path, change: Callable[[State], State]) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def copied(pipelines: Pipelines, name: str, path: Path) -> Path:
    shutil.copytree(pipelines(name), path / "model")
    return path / "model"


def last_dropped(state: State) -> State:
    return {name: state[name] for name in sorted(state)[:-1]}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("name", PIPELINES)
def test_every_part_without_one_of_its_tensors_is_refused(name: str, tmp_path: Path, pipeline_path: Pipelines) -> None:
    model = copied(pipeline_path, name, tmp_path)
    load_backbone(str(model))
    for part, file in components(model).items():
        whole = file.read_bytes()
        missing = max(load_file(file))
        rewrite(file, last_dropped)
        with pytest.raises(UserError) as caught:
            load_backbone(str(model))
        text = str(caught.value)
        missing_names = 2 if missing == "shared.weight" else 1  # T5's embedding has two names
        words = f"the {part} of {model} was not loaded from {file.name} as a whole: {missing_names} of "
        assert f"model.path: {words}" in text
        assert missing.removeprefix("model.") in text and "tensors of the file are not in the model" not in text
        file.write_bytes(whole)


@pytest.mark.parametrize("name", PIPELINES)
def test_text_encoders_with_names_that_no_library_knows_are_refused(
    name: str, tmp_path: Path, pipeline_path: Pipelines
) -> None:
    """As transformers 5.0 to 5.5 loaded the names of later versions: with random weights, and without an error."""
    model = copied(pipeline_path, name, tmp_path)
    for part in TEXT_ENCODERS:
        if (file := components(model).get(part)) is not None:
            whole = file.read_bytes()
            rewrite(file, prefixed("renamed."))
            words = rf"the {part} of .* tensors of the file are not in the model \(renamed"
            with pytest.raises(UserError, match=words):
                load_backbone(str(model))
            file.write_bytes(whole)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_surplus_tensor_is_refused(part: str, tmp_path: Path, tiny_pipeline: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "model")
    rewrite(components(tmp_path / "model")[part], lambda state: state | {"more.weight": torch.zeros(2)})
    words = rf"the {part} of .*: 1 of \d+ tensors of the file are not in the model \(more.weight\)"
    with pytest.raises(UserError, match=words):
        load_backbone(str(tmp_path / "model"))


def old_names(state: State) -> State:
    """As diffusers named the attention of autoencoders until 2023."""
    renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in renames.items():
        state = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in state.items()}
    return state


@pytest.mark.parametrize(("name", "part", "change"), [
    ("StableDiffusionXLPipeline", "text_encoder", prefixed("text_model.")),
    ("FluxPipeline", "vae", old_names),
    (SD, "text_encoder", lambda state: state | {"text_model.embeddings.position_ids": torch.arange(16)[None]}),
    ("FluxPipeline", "text_encoder_2", lambda state: state | {"decoder.final_layer_norm.weight": torch.ones(16)}),
    ("ZImagePipeline", "text_encoder", lambda state: state | {"lm_head.weight": torch.ones(300, 16)}),
])  # fmt: skip
def test_names_that_the_libraries_convert_and_known_surplus_load(
    name: str, part: str, change: Callable[[State], State], tmp_path: Path, pipeline_path: Pipelines
) -> None:
    model = copied(pipeline_path, name, tmp_path)
    before = load_file(components(model)[part])
    rewrite(components(model)[part], change)
    assert load_file(components(model)[part]).keys() != before.keys()
    image = image_of(load_backbone(str(model), size=(SIDE, SIDE)), name)
    assert (image == image_of(load_backbone(str(pipeline_path(name)), size=(SIDE, SIDE)), name)).all()


@pytest.mark.parametrize("damage", ["text_encoder", "unet", "vae"])
def test_the_command_line_ends_with_one_message(
    damage: str, sdpo: Run, tmp_path: Path, pipeline_path: Pipelines
) -> None:
    model = copied(pipeline_path, SD, tmp_path)
    rewrite(components(model)[damage], last_dropped)
    settings = overrides(lambda _: model, SD)
    for command in (["train", "emoji", *settings, "--output-dir", "run"], ["sample", str(model), "cat"],
                    ["evaluate", str(model), "--steps", "1", "--reward", "colorfulness"]):  # fmt: skip
        result = sdpo(*command)
        assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
        assert f"the {damage} of {model} was not loaded" in result.stderr and result.stderr.count("error:") == 1
    result = sdpo("doctor", "emoji", *settings)
    assert result.returncode == 1 and f"the {damage} of {model} was not loaded" in result.stdout
    assert not (tmp_path / "run" / "lora").exists()


def test_a_run_of_all_weights_with_a_damaged_result_is_refused(
    sdpo: Run, tmp_path: Path, pipeline_path: Pipelines
) -> None:
    trained = sdpo("train", "emoji", *overrides(pipeline_path, SD), "lora=null", "epochs=1", "--output-dir", "run")
    assert trained.returncode == 0, trained.stderr
    rewrite(components(tmp_path / "run" / "model")["unet"], last_dropped)
    result = sdpo("sample", "run", "cat")
    assert result.returncode == 2 and "the unet of run/model was not loaded" in result.stderr


def test_shards_and_variants_are_compared_as_a_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipeline = PIPELINES[SD]()
    pipeline.save_pretrained(tmp_path / "model", variant="fp16", max_shard_size="50KB")
    shards = sorted((tmp_path / "model" / "unet").glob("*.safetensors"))
    assert len(shards) > 2 and all("fp16" in shard.name for shard in shards)
    load_backbone(str(tmp_path / "model"), variant="fp16")
    rewrite(shards[1], lambda state: state | {"more.weight": torch.zeros(2)})
    with pytest.raises(UserError, match=r"the unet of .*more.weight"):
        load_backbone(str(tmp_path / "model"), variant="fp16")


def test_a_model_in_the_cache_of_the_hub(
    sdpo: Run, tmp_path: Path, pipeline_path: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "models--someone--model"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(pipeline_path(SD), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    arguments = ["sample", "someone/model", "cat", "--steps", "1", "-o", "cat.png"]
    result = sdpo(*arguments)
    assert result.returncode == 0, result.stderr
    rewrite(components(repository / "snapshots" / commit)["text_encoder"], last_dropped)
    result = sdpo(*arguments)
    assert result.returncode == 2 and "the text_encoder of someone/model was not loaded" in result.stderr


def test_a_pipeline_of_the_users_own_without_values_is_refused(tmp_path: Path, pipeline_path: Pipelines) -> None:
    model = copied(pipeline_path, SD, tmp_path)
    rewrite(components(model)["vae"], last_dropped)
    pipeline = DiffusionPipeline.from_pretrained(model)
    with pytest.raises(UserError, match=r"1 tensors? of the pipeline's vae ha.* no values \(encoder"):
        wrap_pipeline(pipeline)
