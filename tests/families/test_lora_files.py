"""LoRA files of which tensors are missing, or have no place in the model: refused by number and name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler
from diffusers.utils import convert_state_dict_to_kohya
from helpers.command_line import Run
from helpers.families import wrapped
from helpers.family_runs import Pipelines, overrides
from helpers.pipelines import PIPELINES
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdpo import Config, Trainer
from sdpo.backbones import wrap_pipeline
from sdpo.backbones.lora_files import LORA_FILE, check_whole, locate
from sdpo.errors import UserError

State = dict[str, Tensor]
SD, XL, FLUX = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"


def written(name: str, folder: Path) -> Path:
    """Write a LoRA of rank 2 and α 4 with random weights; returns its file."""
    backbone = wrapped(PIPELINES[name])
    backbone.train_lora(2, 4, None)
    torch.manual_seed(1)
    for parameter in backbone.trainable_parameters().values():
        nn.init.normal_(parameter)
    return backbone.save(folder) / LORA_FILE


def rewrite(file: Path, change: Callable[[State], State]) -> None:
    """Metadata of diffusers stay where no tensor is added or renamed."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    before = load_file(file)
    after = change(dict(before))
    known = after.keys() <= before.keys()
    save_file({n: t.contiguous() for n, t in after.items()}, file, metadata=metadata if known else None)


def kohya(state: State) -> State:
    found = convert_state_dict_to_kohya(dict(state))
    return {name: torch.tensor(4.0) if name.endswith(".alpha") else tensor for name, tensor in found.items()}


def quarter_renamed(old: str, new: str) -> Callable[[State], State]:
    """Every fourth module under a name that no model has."""

    def change(state: State) -> State:
        modules = sorted({name.split(".lora_")[0] for name in state})[::4]
        return {n.replace(old, new) if n.split(".lora_")[0] in modules else n: t for n, t in state.items()}

    return change


def without(part: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if part not in name}


def without_first(part: str) -> Callable[[State], State]:
    return lambda state: without(min(name for name in state if part in name))(state)


def without_first_module(state: State) -> State:
    return without(min(state).split(".lora_")[0] + ".")(state)


def with_text_encoder(state: State) -> State:
    """Tensors for two modules, of which the tiny text encoder has the first."""
    for layer in (0, 7):
        module = f"text_encoder.text_model.encoder.layers.{layer}.self_attn.q_proj"
        state |= {f"{module}.lora_A.weight": torch.rand(2, 16), f"{module}.lora_B.weight": torch.rand(16, 2)}
    return state


def with_dora(state: State) -> State:
    """The magnitudes of a DoRA, in kohya's names."""
    return state | {n.replace("alpha", "dora_scale"): torch.rand(16, 1) for n in kohya(state) if n.endswith("alpha")}


NO_PLACE, INCOMPLETE = "tensors have no place in this model", "The file is incomplete"
DAMAGES: dict[str, tuple[str, Callable[[State], State], str]] = {
    "unknown modules": (SD, quarter_renamed(".attn", ".other"), f"16 of its 64 {NO_PLACE} (unet."),
    "unknown parts": (SD, quarter_renamed("unet.", "net."), f"16 of its 64 {NO_PLACE} (net."),
    "unknown modules of kohya": (
        SD, lambda s: kohya(quarter_renamed(".attn", ".other")(s)), f"16 of its 96 {NO_PLACE} (unet."),
    "unknown modules of XL": (XL, quarter_renamed(".attn", ".other"), f"16 of its 64 {NO_PLACE} (unet."),
    "unknown modules of FLUX": (FLUX, quarter_renamed(".attn.", ".other."), f"6 of its 22 {NO_PLACE} (transformer."),
    "a text encoder that is smaller": (SD, with_text_encoder, f"2 of its 68 {NO_PLACE} (text_encoder."),
    "magnitudes": (SD, lambda s: kohya(s) | {n: t for n, t in with_dora(s).items() if "dora" in n},
                   f"32 of its 128 {NO_PLACE} (lora_unet_"),
    "no lora_B": (SD, without("lora_B"), "32 of its 64 matrices are missing (unet."),
    "no lora_A": (SD, without("lora_A"), "32 of its 64 matrices are missing (unet."),
    "one lora_B less": (SD, without_first("lora_B"), "1 of its 64 matrices are missing (unet."),
    "one lora_B of FLUX less": (FLUX, without_first("lora_B"), "1 of its 22 matrices are missing (transformer."),
    "one up of kohya less": (
        SD, lambda s: without_first("lora_up")(kohya(s)), "1 of its 64 matrices are missing (lora_unet_"),
    "a module less": (SD, without_first_module, "it has no tensors for 1 of the modules that its metadata name (unet."),
}  # fmt: skip


@pytest.mark.parametrize("setting", ["lora.path", "model.fuse_lora"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lora_that_does_not_load_as_a_whole_is_refused(damage: str, setting: str, tmp_path: Path) -> None:
    name, change, words = DAMAGES[damage]
    file = written(name, tmp_path)
    whole = file.read_bytes()

    def use() -> None:
        if setting == "lora.path":
            wrapped(PIPELINES[name]).train_lora(2, 4, None, str(file))
        else:
            wrapped(PIPELINES[name], fuse_lora={"path": str(file), "scale": 1.0, "weight_name": None})

    use()
    rewrite(file, change)
    with pytest.raises(UserError) as caught:
        use()
    assert str(caught.value).startswith(f"{setting}: the LoRA {file} cannot be used: {words}"), caught.value
    assert NO_PLACE in words or INCOMPLETE in str(caught.value)
    file.write_bytes(whole)
    use()


def test_matrices_that_no_tensor_of_the_file_filled_are_found(tmp_path: Path) -> None:
    backbone, file = wrapped(PIPELINES[SD]), written(SD, tmp_path)
    backbone.load_lora(file)
    module = min(load_file(file)).split(".lora_")[0]
    rewrite(file, without_first_module)
    with pytest.raises(UserError, match=rf"no tensors for 1 of the modules .* \({module}\)"):
        check_whole(backbone.pipeline, file, "default")


def test_the_command_line_refuses_them_for_new_and_for_trained_loras(
    sdpo: Run, tmp_path: Path, pipeline_path: Pipelines
) -> None:
    command = ["train", "emoji", *overrides(pipeline_path, SD), "epochs=1", "--output-dir"]
    result = sdpo(*command, "run")
    assert result.returncode == 0, result.stderr
    file = tmp_path / "run" / "lora" / LORA_FILE
    rewrite(file, without_first("lora_B"))
    for arguments in ([*command, "other", "lora.path=run/lora"], [*command, "other", "model.fuse_lora.path=run/lora"],
                      ["sample", "run", "cat"], ["export", "run", "--to", "merged"]):  # fmt: skip
        result = sdpo(*arguments)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert "1 of its 64 matrices are missing (unet." in result.stderr, result.stderr


@pytest.mark.parametrize("name", [SD, XL])
def test_loras_with_text_encoders_in_both_formats_are_fused_as_a_whole(name: str, tmp_path: Path) -> None:
    module = "encoder.layers.0.self_attn.out_proj"
    for number, prefix in enumerate(["text_encoder"] if name == SD else ["text_encoder", "text_encoder_2"]):
        file = written(name, tmp_path / prefix)
        down, up = torch.rand(2, 16), torch.rand(16, 2)
        for form in ("diffusers", "kohya"):
            state = load_file(file)
            if form == "diffusers":
                state |= {f"{prefix}.text_model.{module}.lora_A.weight": down,
                          f"{prefix}.text_model.{module}.lora_B.weight": up}  # fmt: skip
            else:
                key = f"lora_te{number + 1 if name == XL else ''}_text_model_{module.replace('.', '_')}"
                state = kohya(state) | {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up,
                                        f"{key}.alpha": torch.tensor(2.0)}  # fmt: skip
            other = tmp_path / f"{prefix}.{form}.safetensors"
            save_file({key: tensor.contiguous() for key, tensor in state.items()}, other)
            base = wrapped(PIPELINES[name])
            fused = wrapped(PIPELINES[name], fuse_lora={"path": str(other), "scale": 1.0, "weight_name": None})
            key = f"{module}.weight" if name == SD or prefix == "text_encoder" else f"text_model.{module}.weight"
            before, after = (getattr(b.pipeline, prefix).state_dict()[key] for b in (base, fused))
            torch.testing.assert_close(after, before + up @ down)


def test_the_file_in_a_folder_is_the_known_one_or_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no safetensors file"):
        locate(tmp_path)
    (tmp_path / "one.safetensors").touch()
    assert locate(tmp_path).name == "one.safetensors" and locate(tmp_path, "other.safetensors").name[0] == "o"
    (tmp_path / "two.safetensors").touch()
    with pytest.raises(UserError, match=r"several files \(one.safetensors, two.safetensors\): name one"):
        locate(tmp_path)
    (tmp_path / LORA_FILE).touch()
    assert locate(tmp_path).name == LORA_FILE and locate(tmp_path / "two.safetensors").name == "two.safetensors"


def test_a_lora_in_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--someone--lora"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    written(SD, tmp_path).rename(snapshot / LORA_FILE)
    fuse: dict[str, Any] = {"path": "someone/lora", "scale": 1.0, "weight_name": None}
    base, fused = wrapped(PIPELINES[SD]), wrapped(PIPELINES[SD], fuse_lora=fuse)
    changed = [
        name
        for name, weight in base.network_module.state_dict().items()
        if not torch.equal(weight, fused.network_module.state_dict()[name])
    ]
    assert len(changed) == 32
    rewrite(snapshot / LORA_FILE, without_first("lora_B"))
    with pytest.raises(UserError, match="the LoRA someone/lora cannot be used: 1 of its 64 matrices"):
        wrapped(PIPELINES[SD], fuse_lora=fuse)


# -- LoRAs of the user's own pipeline ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SD, FLUX])
@pytest.mark.parametrize("state", ["loaded", "switched off", "fused and not unloaded"])
def test_a_lora_on_the_users_pipeline_is_refused_by_name(state: str, name: str, tmp_path: Path) -> None:
    pipeline: Any = PIPELINES[name]()
    pipeline.load_lora_weights(str(written(name, tmp_path)), adapter_name="fast")
    if state == "switched off":
        pipeline.disable_lora()
    elif state != "loaded":
        pipeline.fuse_lora()
    part = "unet" if name == SD else "transformer"
    advice = rf"pipeline.fuse_lora\(components=\['{part}'\]\); pipeline.unload_lora_weights\(\)"
    with pytest.raises(UserError, match=rf"the pipeline has the LoRA 'fast' on its {part}. .*{advice}"):
        wrap_pipeline(pipeline)
    with pytest.raises(UserError, match="the pipeline has the LoRA 'fast'"):
        Trainer(Config.load("emoji", output_dir=str(tmp_path / "run")), pipeline=pipeline)


def test_a_lora_that_is_fused_as_advised_is_trained_on(tmp_path: Path) -> None:
    """The advice of the message, followed: what was fused stays in samples, in the reference and in the base."""
    torch.manual_seed(0)
    pipeline: Any = PIPELINES[SD]()
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    network = pipeline.unet
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    before = network.get_submodule(name).weight.clone()
    pipeline.load_lora_weights(str(written(SD, tmp_path)), adapter_name="fast")
    down, up = (network.get_submodule(f"{name}.lora_{kind}.fast").weight.clone() for kind in "AB")
    pipeline.fuse_lora(components=["unet"])
    pipeline.unload_lora_weights()
    backbone = wrap_pipeline(pipeline)
    backbone.train_lora(2, 4, None)
    weight = backbone.network_module.get_submodule(name).get_submodule("base_layer").weight
    torch.testing.assert_close(weight, before + 4 / 2 * up @ down)
    latents, steps, one = torch.randn(1, *backbone.latent_shape), torch.tensor([500]), backbone.encode(["a cat"])
    with torch.no_grad():
        plain = backbone.network(latents, steps, one)
        for parameter in backbone.trainable_parameters().values():
            nn.init.normal_(parameter)
        assert not torch.equal(backbone.network(latents, steps, one), plain)
        with backbone.reference():
            assert torch.equal(backbone.network(latents, steps, one), plain)


def test_a_lora_on_a_text_encoder_is_refused_too() -> None:
    pipeline: Any = PIPELINES[SD]()
    module = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    state = {f"{module}.lora_A.weight": torch.rand(2, 16), f"{module}.lora_B.weight": torch.rand(16, 2)}
    pipeline.load_lora_weights(state, adapter_name="words")
    with pytest.raises(UserError, match=r"the LoRA 'words' on its text_encoder\..*components=\['text_encoder'\]"):
        wrap_pipeline(pipeline)
    pipeline.fuse_lora(components=["text_encoder"])
    pipeline.unload_lora_weights()
    wrap_pipeline(pipeline)


@pytest.mark.parametrize("name", ["Hyper-SDXL-1step-lora.safetensors", "Hyper-SD15-1step-lora.safetensors"])
def test_hyper_sds_one_step_lora_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file = written(SD, tmp_path).rename(tmp_path / name)
    for fuse in ({"path": str(file), "weight_name": None}, {"path": str(tmp_path), "weight_name": name}):
        with pytest.raises(UserError, match=rf"model.fuse_lora: .*{name} is Hyper-SD's one-step LoRA.*2, 4 or 8 steps"):
            wrapped(PIPELINES[SD], fuse_lora={**fuse, "scale": 1.0})
    other = file.rename(tmp_path / name.replace("1step", "4steps"))
    wrapped(PIPELINES[SD], fuse_lora={"path": str(other), "scale": 1.0, "weight_name": None})
