"""`sdpo doctor` reports no failure on a healthy model of each family, with a LoRA and with all weights."""

from __future__ import annotations

import pytest
from helpers.command_line import Run, succeeded
from helpers.family_runs import SD_LCM, Pipelines, overrides
from helpers.flow_pipelines import FLOW_PIPELINES
from helpers.pipelines import PIPELINES


@pytest.mark.parametrize("name", [*dict.fromkeys([*PIPELINES, *FLOW_PIPELINES]), SD_LCM])
def test_a_healthy_model_has_no_failure(sdpo: Run, pipeline_path: Pipelines, name: str) -> None:
    for weights in ("lora={rank: 2}", "lora=null"):
        result = succeeded(sdpo("doctor", "emoji", *overrides(pipeline_path, name), weights))
        # SD 3 computes a last query that it never uses, Z-Image a padding token that whole batches do not need.
        assert "0 FAIL" in result.stdout and ("ok    gradient" in result.stdout or "WARN  gradient" in result.stdout)
