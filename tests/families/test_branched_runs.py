"""Runs that branch at one step, of every pipeline class."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.family_runs import GUIDANCE, SD_LCM, Pipelines, overrides
from helpers.flow_pipelines import FLOW_PIPELINES
from helpers.pipelines import PIPELINES
from helpers.run_files import rows

from sdpo import Config
from sdpo.cli.main import main
from sdpo.estimate.cost import describe_cost

BRANCHES = 3
EXTRA = [
    f"algorithm={{name: sdpo, branches: {BRANCHES}, credit: gain, reward_plan: all, discount: 1.0}}",
    "evaluate.steps=[2]",
    "prompts.unseen=null",
    "sample.branch_at=1",
]


@pytest.mark.parametrize("after", ["common", "none"])
@pytest.mark.parametrize("name", [*PIPELINES, SD_LCM])
def test_every_pipeline_class_branches(tmp_path: Path, pipeline_path: Pipelines, name: str, after: str) -> None:
    settings = [*overrides(pipeline_path, name), *EXTRA, f"sample.after_branch={after}"]
    consistency = name in ("LatentConsistencyModelPipeline", SD_LCM)
    code = main(["train", "emoji", *settings, "--output-dir", str(tmp_path / "run")])
    if after == "none" and consistency:
        assert code == 2, "fresh noise in every step is all that such a sampler has"
        return
    assert code == 0
    found = rows(tmp_path / "run")
    assert all(row["train/on_policy_log_ratio"] <= 1e-5 for row in found)
    assert min(row["train/grad_norm"] for row in found) > 0
    # Two epochs of four groups of three steps: two evaluations of the prefix, one of each branch, one with gradient.
    twice = 2 if GUIDANCE.get(name, 1.0) != 1 and name not in (*FLOW_PIPELINES, "LatentConsistencyModelPipeline") else 1
    assert found[-1]["denoiser_evaluations"] == 2 * 4 * (2 + BRANCHES + 1) * twice
    assert found[-1]["reward_queries"] == 2 * 4 * (1 + BRANCHES)
    assert f"{found[-1]['denoiser_evaluations']} network evaluations, " in describe_cost(Config.load("emoji", settings))
