"""Models beside files that hold their weights, other weights, more or fewer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sdpo.errors import UserError
from sdpo.system import loaded_weights
from sdpo.system.loaded_weights import check_loaded, variants, weight_files

State = dict[str, Tensor]


class Model(nn.Module):
    """Two layers of the same shape, a norm whose weights are all equal, a tied weight and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.conv = nn.Linear(20, 20), nn.Linear(20, 20), nn.Conv2d(3, 4, 3)
        self.norm, self.tied = nn.BatchNorm1d(20), nn.Linear(20, 20, bias=False)
        self.tied.weight = self.one.weight
        self.register_buffer("position_ids", torch.arange(4))
        self.scale = nn.Parameter(torch.tensor(3.0))


def stored(model: nn.Module) -> State:
    """As libraries store it: a tied weight once, nothing that is computed."""
    absent = {"tied.weight", "position_ids", "norm.num_batches_tracked"}
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in absent}


def check(state: State, path: Path, model: nn.Module | None = None) -> None:
    save_file(state, path / "model.safetensors")
    check_loaded(model or Model(), [path / "model.safetensors"], f"the model in {path}")


def renamed(state: State) -> State:
    return {f"prefix.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("change", [
    dict,
    renamed,
    lambda state: state | {"position_ids": torch.arange(9), "norm.num_batches_tracked": torch.tensor(7)},
    lambda state: {"tied.weight" if name == "one.weight" else name: tensor for name, tensor in state.items()},
    lambda state: state | {"tied.weight": state["one.weight"].clone()},
    lambda state: {name: tensor.double() for name, tensor in state.items()},
])  # fmt: skip
def test_the_same_weights_are_accepted_under_any_name(change: Callable[[State], State], tmp_path: Path) -> None:
    check(change(stored(Model())), tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_another_precision_are_accepted(dtype: torch.dtype, tmp_path: Path) -> None:
    check(stored(Model()), tmp_path, Model().to(dtype))
    half = {name: tensor.to(dtype) for name, tensor in stored(Model()).items()}
    coarse = Model()
    coarse.load_state_dict(half, strict=False)
    check(half, tmp_path, coarse)


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


DAMAGES: dict[str, tuple[Callable[[State], State], str]] = {
    "dropped": (without("two.weight"), r"1 of 14 tensors of the Model are not in the file \(two.weight\)\."),
    "dropped constant": (without("norm.weight"), r"1 of 14 .* \(norm.weight\)\."),
    "dropped scalar": (without("scale"), r"1 of 14 .* \(scale\)\."),
    "dropped, others renamed": (lambda s: renamed(without("two.weight")(s)), r"1 of 14 .* \(two.weight\)\."),
    "constant dropped, others renamed": (lambda s: renamed(without("norm.running_var")(s)), r"1 of 14 .*norm\."),
    "dropped, another has its values": (
        lambda s: without("norm.weight")(s | {"norm.running_var": torch.ones(20)}), r"\(norm.weight\)\."),
    "surplus": (lambda s: s | {"more": torch.ones(2)}, r"1 of 12 tensors of the file are not in the model \(more\)"),
    "surplus zeros": (lambda s: s | {"more": torch.zeros(20)}, r"the model \(more\)"),
    "another value": (lambda s: s | {"two.bias": s["two.bias"] + 1e-3}, r"file \(two.bias\).*model \(two.bias\)"),
    "exchanged": (
        lambda s: s | {"two.bias": s["one.bias"].clone(), "one.bias": s["two.bias"].clone()},
        r"\(one.bias, two.bias\).*\(one.bias, two.bias\)"),
    "all other": (
        lambda s: {name: torch.rand(tensor.shape) for name, tensor in s.items()},
        r"12 of 14 tensors .* \(conv.bias, conv.weight, norm.bias and 9 more\); 11 of 11 tensors of the file"),
    "another shape": (lambda s: s | {"scale": torch.tensor([3.0])}, r"\(scale\).*\(scale\)"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_other_weights_are_refused_by_name(damage: str, tmp_path: Path) -> None:
    change, words = DAMAGES[damage]
    place = r"^the model in .* was not loaded from model.safetensors as a whole: .*"
    with pytest.raises(UserError, match=place + words):
        check(change(stored(Model())), tmp_path)


def test_a_tensor_without_values_is_missing(tmp_path: Path) -> None:
    model = Model()
    model.two.weight = nn.Parameter(torch.empty(20, 20, device="meta"))
    with pytest.raises(UserError, match=r"\(two.weight\)"):
        check(stored(Model()), tmp_path, model)


def test_a_text_encoder_may_leave_out_what_it_does_not_compute_with(tmp_path: Path) -> None:
    class T5EncoderModel(Model):
        pass

    whole = stored(Model()) | {"decoder.layer.weight": torch.ones(3), "lm_head.weight": torch.ones(3)}
    check(whole, tmp_path, T5EncoderModel())
    with pytest.raises(UserError, match="2 of 13 tensors of the file"):
        check(whole, tmp_path)
    with pytest.raises(UserError, match=r"model \(encoder.weight\)"):
        check(whole | {"encoder.weight": torch.ones(3)}, tmp_path, T5EncoderModel())


def test_a_file_that_is_missing_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model has no safetensors file"):
        check_loaded(Model(), [], "the model")
    file = tmp_path / "model.safetensors"
    for content in (b"", b"no safetensors"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="model.safetensors cannot be read"):
            check_loaded(Model(), [file], "the model")


@pytest.mark.parametrize("shape", [(), (3,), (5000,), (4, 3), (3000, 2000), (320, 320, 3, 3), (1, 4096, 64), (2, 3, 4)])
def test_few_numbers_are_compared(shape: tuple[int, ...]) -> None:
    """A tensor of billions of numbers costs no more than a small one."""
    index = loaded_weights._middle(shape)
    assert len(index) == len(shape) and torch.empty(shape, device="meta")[index].numel() <= 64
    assert all(0 <= part.start < part.stop for part in index) and torch.zeros(shape)[index].numel() > 0
    assert math.prod(shape) < 64 or torch.zeros(shape)[index].numel() >= 9


FILES: list[tuple[list[str], str | None, list[str]]] = [
    (["model.safetensors"], None, ["model.safetensors"]),
    (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"], None,
     ["diffusion_pytorch_model.safetensors"]),
    (["model.safetensors", "model.fp16.safetensors"], None, ["model.safetensors"]),
    (["model.safetensors", "model.fp16.safetensors"], "fp16", ["model.fp16.safetensors"]),
    (["model.safetensors"], "fp16", ["model.safetensors"]),
    (["model.safetensors", "model.safetensors.index.json"], None, ["model.safetensors"]),
    (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"], None,
     ["a.safetensors", "b.safetensors"]),
    (["model.safetensors.index.json"], None, ["a.safetensors", "b.safetensors"]),
    (["model.safetensors", "model.safetensors.index.fp16.json"], "fp16", ["a.safetensors", "b.safetensors"]),
    (["model.safetensors", "model.safetensors.fp16.index.json"], "fp16", ["a.safetensors", "b.safetensors"]),
    (["config.json", "adapter.safetensors"], None, []),
]  # fmt: skip


@pytest.mark.parametrize(("files", "variant", "expected"), FILES)
def test_the_files_that_the_libraries_read(
    files: list[str], variant: str | None, expected: list[str], tmp_path: Path
) -> None:
    for name in files:
        weights = {"one": "b.safetensors", "two": "a.safetensors", "three": "b.safetensors"}
        (tmp_path / name).write_text(json.dumps({"weight_map": weights}))
    assert [path.name for path in weight_files(tmp_path, variant)] == expected


def test_the_variants_in_a_folder(tmp_path: Path) -> None:
    for name in ("model.fp16.safetensors", "model.bf16-00001-of-00002.safetensors", "other.safetensors",
                 "model-00001-of-00002.old.safetensors", "model.ema.bin"):  # fmt: skip
        (tmp_path / name).touch()
    assert variants(tmp_path) == ["bf16", "fp16", "old"]
    (tmp_path / "model.safetensors").touch()
    assert set(variants(tmp_path)) == {None, "bf16", "fp16", "old"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match="index.json cannot be read"):
        weight_files(tmp_path)
