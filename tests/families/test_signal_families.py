"""`sdpo signal` on every pipeline class: the scores of batches are those of single samples."""

from __future__ import annotations

import pytest
import torch
from helpers.family_runs import Pipelines, overrides
from helpers.pipelines import PIPELINES
from pytest import MonkeyPatch

from sdpo import Config
from sdpo.commands.signal import Options, SignalResult, measure_signal
from sdpo.loop import score_vectors
from sdpo.loop.score_vectors import ScoreRecorder

OPTIONS = Options(groups=8, direction_samples=2, dimension=64)
BATCHED: list[bool] = []


def measured(settings: list[str], monkeypatch: MonkeyPatch, batched: bool) -> SignalResult:
    if not batched:
        monkeypatch.setattr(score_vectors, "_NUMBERS", 0)
    record = ScoreRecorder.record

    def noted(self: ScoreRecorder, *arguments: object, **options: object) -> object:
        found = record(self, *arguments, **options)  # type: ignore[arg-type]
        BATCHED.append(self.batched)
        return found

    monkeypatch.setattr(ScoreRecorder, "record", noted)
    return measure_signal(Config.load("emoji", settings), OPTIONS)


@pytest.mark.parametrize("name", PIPELINES)
def test_scores_of_batches_are_those_of_single_samples(pipeline_path: Pipelines, name: str) -> None:
    settings = [
        *overrides(pipeline_path, name),
        "algorithm={name: sdpo, credit: future}",
        "evaluate={every: 0, steps: [2], judge: null}",
        "prompts.unseen=null",
    ]
    found = []
    BATCHED.clear()
    for batched in (True, False):
        with MonkeyPatch.context() as patch:
            checkpointing = [] if batched else ["train.gradient_checkpointing=true"]
            found.append(measured([*settings, *checkpointing], patch, batched))
    assert BATCHED[0] and not BATCHED[-1]
    for one, other in zip(found[0].measured, found[1].measured, strict=True):
        values = [torch.tensor([m.all_steps.noise, *(r.value for r in m.towards.values())]) for m in (one, other)]
        torch.testing.assert_close(values[0], values[1], rtol=1e-2, atol=1e-3)
