"""A reward is called on copies and without gradient: whatever it does to its arguments, nobody else sees it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdpo.errors import RewardError
from sdpo.loop.reward_mix import RewardMix
from sdpo.rewards.base import PlacedReward

Metadata = list[dict[str, Any]]


def brightness(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    return images.mean((1, 2, 3)) + torch.tensor([float(m["wish"][0]) for m in metadata])


def scales(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    images *= 255
    return images.mean((1, 2, 3))


def writes_through_numpy(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    images.numpy()[:] = 0
    return images.mean((1, 2, 3))


def writes_through_data(images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
    images.data.zero_()
    return images.mean((1, 2, 3))


def changes_the_rest(images: Tensor, prompts: list[str], metadata: Metadata) -> list[float]:
    scores = [float(len(prompts[i])) for i in range(len(prompts))]
    prompts.reverse()
    for entry in metadata:
        entry.pop("wish")[0] = 9
    metadata.clear()
    return scores


class Remote:
    remote = True

    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        return scales(images, prompts, metadata)


@pytest.mark.parametrize(
    "rude",
    [scales, writes_through_numpy, writes_through_data, changes_the_rest, Remote()],
    ids=["in place", "through numpy", "through data", "the rest", "remote"],
)
def test_what_a_reward_does_to_its_arguments_stays_with_it(rude: Any) -> None:
    images, prompts = torch.rand(5, 3, 4, 4), ["a", "bb", "ccc", "dddd", "eeeee"]
    metadata: Metadata = [{"wish": [i]} for i in range(5)]
    before, expected = images.clone(), brightness(images, prompts, metadata)
    mix = RewardMix({"rude": rude, "brightness": brightness}, {"rude": 1.0, "brightness": 1.0})
    found = mix.start(images, prompts, metadata)()
    torch.testing.assert_close(found["brightness"], expected)
    assert torch.equal(images, before)
    assert prompts == ["a", "bb", "ccc", "dddd", "eeeee"] and metadata == [{"wish": [i]} for i in range(5)]


def test_an_error_names_the_first_prompt_although_the_reward_emptied_the_list() -> None:
    def breaks(images: Tensor, prompts: list[str], metadata: Metadata) -> None:
        prompts.clear()
        raise RuntimeError("asleep")

    with pytest.raises(RewardError, match=r"'mine' raised RuntimeError: asleep .*first prompt 'a cat'"):
        PlacedReward("mine", breaks)(torch.rand(1, 3, 4, 4), ["a cat"], [{}])  # type: ignore[arg-type]


@pytest.mark.parametrize("remote", [False, True])
def test_a_network_keeps_no_graph(remote: bool) -> None:
    layer = nn.Linear(3, 1)
    outputs: list[Tensor] = []

    class Judge:
        def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
            outputs.append(layer(images.mean((2, 3)))[:, 0])
            return outputs[-1]

    judge = Judge()
    judge.remote = remote  # type: ignore[attr-defined]
    with torch.enable_grad():
        scores = RewardMix({"judge": judge}, {"judge": 1.0}).start(torch.rand(2, 3, 4, 4), ["a", "b"], [{}, {}])()
    assert outputs[0].grad_fn is None and not scores["judge"].requires_grad
    assert torch.is_grad_enabled()
