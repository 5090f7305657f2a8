"""The reward models at a small size: prompts of all kinds, batches, gradients, files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_rewards import MAKERS, head_state, tiny_clip, tiny_imagereward
from torch import nn

from sdpo.errors import UserError
from sdpo.rewards import load_reward
from sdpo.rewards.models import clip, heads, hpsv2, imagereward

PROMPTS = ["", "a cat " * 150, "une chèvre à l'œil 猫", "a &lt;b&gt;cat&amp;amp;dog&lt;/b&gt;", "two dogs"]


@pytest.fixture(params=sorted(MAKERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("mode", ["official", "sdpo"])
@pytest.mark.parametrize("resize", ["float", "pil"])
def test_a_batch_scores_like_its_images_one_by_one(name: str, mode: str, resize: str) -> None:
    reward = MAKERS[name](mode, resize)
    images = torch.rand(len(PROMPTS), 3, 48, 40, generator=torch.Generator().manual_seed(1))
    together = reward(images, PROMPTS, [{}] * len(PROMPTS))
    alone = torch.cat([reward(images[i : i + 1], PROMPTS[i : i + 1], [{}]) for i in range(len(PROMPTS))])
    assert together.shape == (len(PROMPTS),) and together.dtype == torch.float32 and together.isfinite().all()
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    if name != "aesthetic":
        same = reward(images[:1].expand(len(PROMPTS), -1, -1, -1), PROMPTS, [{}] * len(PROMPTS))
        assert same.unique().numel() > 2, "prompts do not matter"


def test_gradients_flow_to_the_image(name: str) -> None:
    reward = MAKERS[name]("official", "float")
    images = torch.rand(2, 3, 48, 48, requires_grad=True)
    reward(images, ["a cat", "two dogs"], [{}, {}]).sum().backward()
    assert images.grad is not None and all(g.abs().sum() > 0 and g.isfinite().all() for g in images.grad)


def test_modes_differ_as_documented() -> None:
    images = torch.rand(3, 3, 48, 48)
    prompts, metadata = ["a cat", "two dogs", "a cat"], [{}] * 3
    official, raw = (tiny_imagereward(mode, "pil")(images, prompts, metadata) for mode in ("official", "sdpo"))
    torch.testing.assert_close(official, (raw - imagereward.MEAN) / imagereward.STD, atol=1e-4, rtol=1e-4)
    scaled, cosine = (MAKERS["pickscore"](mode, "pil")(images, prompts, metadata) for mode in ("official", "sdpo"))
    torch.testing.assert_close(scaled, tiny_clip().logit_scale.exp() * cosine)
    wide = torch.rand(1, 3, 32, 64)
    padded, cropped = (MAKERS["hpsv2"](mode, "float")(wide, ["a cat"], [{}]) for mode in ("official", "sdpo"))
    assert padded != cropped


def test_html_escapes_are_undone_for_hpsv2_alone() -> None:
    assert hpsv2.clean_text("a &amp;amp; b &lt;c&gt;") == "a & b <c>"
    image, plain, escaped = torch.rand(1, 3, 48, 48), "cat & dog", "cat &amp; dog"
    for which, same in (("hpsv2", True), ("pickscore", False)):
        reward = MAKERS[which]("official", "float")
        assert (reward(image, [plain], [{}]) == reward(image, [escaped], [{}])).item() is same


def test_collapsed_and_layered_heads_agree() -> None:
    state = head_state(768)
    layered = nn.Sequential(*(nn.Linear(*reversed(state[f"layers.{i}.weight"].shape)) for i in heads.LAYERS))
    for layer, index in zip(layered, heads.LAYERS, strict=True):
        layer.weight.data, layer.bias.data = state[f"layers.{index}.weight"], state[f"layers.{index}.bias"]
    embeddings = nn.functional.normalize(torch.randn(50, 768), dim=-1)
    collapsed = heads.LinearHead(*heads.collapse(state, "head"))
    torch.testing.assert_close(collapsed(embeddings), layered(embeddings)[:, 0], atol=1e-5, rtol=1e-5)
    assert collapsed(embeddings.half()).dtype == torch.float32
    with pytest.raises(UserError, match="layers.9.weight"):
        heads.collapse({**state, "layers.9.weight": torch.zeros(1)}, "head")


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this pickle ran code",))


def save_clip(folder: Path, model: Any) -> None:
    folder.mkdir()
    model.save_pretrained(folder)


def test_aesthetic_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "aesthetic"
    model = tiny_clip()
    save_clip(folder, model)
    with pytest.raises(UserError, match=r"aesthetic-model\.pth"):
        load_reward("aesthetic", options={"path": str(folder)})
    torch.save(head_state(24), folder / "aesthetic-model.pth")
    loaded = load_reward("aesthetic", options={"path": str(folder)})
    images = torch.rand(2, 3, 40, 40)
    expected = MAKERS["aesthetic"]("official", "float")(images, ["", ""], [{}, {}])
    torch.testing.assert_close(loaded(images, ["", ""], [{}, {}]), expected)
    (folder / "aesthetic-model.pth").write_bytes(pickle.dumps({"layers.0.weight": Dangerous()}))
    with pytest.raises(UserError, match="can run code and is refused"):
        load_reward("aesthetic", options={"path": str(folder)})
    assert "ran code" not in capsys.readouterr().out


def test_a_model_with_missing_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "clipscore"
    save_clip(folder, tiny_clip())
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors")
    files = {name: folder / name for name in ("config.json", "model.safetensors")}
    with pytest.raises(UserError, match=r"visual_projection\.weight"):
        clip.load_clip(files)
