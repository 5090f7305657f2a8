"""Prompts that are longer than a family's text encoders read: which these are, and that it is said once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.command_line import Run
from helpers.pipelines import PIPELINES

from sdpo.backbones import load_backbone
from sdpo.backbones.pipeline import PipelineBackbone

CONVERSATIONS = ("ZImagePipeline", "Flux2KleinPipeline")  # the end of the conversation is cut before the prompt's


def text(words: int, end: str) -> str:
    return "fox " * words + end


def first_cut(backbone: PipelineBackbone) -> int:
    """The smallest number of words before an end that is cut."""
    low, high = 0, 2048
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if backbone.truncated([text(middle, "a")]) else (middle, high)
    return high


def same(backbone: PipelineBackbone, words: int) -> bool:
    """Whether the last word has no effect."""
    one, other = (backbone.encode([text(words, end)]) for end in "ab")
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_end_of_a_long_prompt_has_no_effect(pipeline_path: Callable[[str], Path], name: str) -> None:
    backbone = load_backbone(str(pipeline_path(name)))
    words = first_cut(backbone)
    assert words > 1 and not same(backbone, words - 1), "the longest prompt that is read as a whole"
    assert same(backbone, words + (8 if name in CONVERSATIONS else 0))
    short, long = text(1, "a"), text(1500, "a")
    assert backbone.truncated([short, long, "", long]) == [long, long] and backbone.truncated([]) == []
    backbone.release_text_encoders("free")
    assert backbone.truncated([short, long]) == [long]


def test_training_evaluation_and_sampling_say_it_once(sdpo: Run, tmp_path: Path, tiny_overrides: list[str]) -> None:
    long = [" ".join(["cat"] * 100), " ".join(["dog"] * 100)]
    settings = [*tiny_overrides, f"prompts={{train: [cat, {long[0]}, {long[1]}, {long[0]}], unseen: [fox, {long[1]}]}}"]
    said = "2 of 4 prompts: longer than the model's text encoder reads (16 tokens, with those that the pipeline adds)"
    assert sdpo("train", "emoji", *settings, "--output-dir", "run").stderr.count(said) == 1
    evaluated = sdpo("evaluate", "run", "--steps", "1", "--images-per-prompt", "1")
    assert evaluated.stderr.count("2 of 3 prompts: longer") == 1 and f"{long[0][:60]}…" in evaluated.stderr
    assert "1 of 1 prompts: longer" in sdpo("sample", "run", long[0], "--compare").stderr
    assert "longer" not in sdpo("sample", "run", "cat").stderr
