"""The size of a model by its files, against the loaded model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.pipelines import PIPELINES

from sdpo import Config
from sdpo.assembly.model import load_model, make_trainable
from sdpo.estimate.model_sizes import latent_shape, model_facts, model_size
from sdpo.estimate.published_models import PUBLISHED


@pytest.mark.parametrize("name", PIPELINES)
def test_files_tell_what_the_loaded_model_has(pipeline_path: Callable[[str], Path], name: str) -> None:
    lora = {"rank": 3, "targets": ["to_q", "to_k", "conv1"]} if name == "StableDiffusionPipeline" else {"rank": 3}
    model = {"path": str(pipeline_path(name)), "height": 64, "width": 32}
    config = Config.load("emoji", model=model, lora={"alpha": 4, "targets": None} | lora)
    size = model_size(config)
    assert size is not None
    backbone = load_model(config, torch.device("cpu"))
    count = lambda *modules: sum(  # noqa: E731
        {t.data_ptr(): t.numel() for m in modules for t in m.state_dict().values()}.values()
    )
    assert size.network == count(backbone.network_module)
    assert size.text_encoders == count(*backbone.text_modules())
    assert math.prod(latent_shape(size)) == math.prod(backbone.latent_shape)
    assert size.embeds_guidance == (backbone.guidance == "embedded")
    assert model_facts(str(pipeline_path(name))).ends_random(None) == backbone.denoiser(4, 1.0).ends_random
    make_trainable(backbone, config, torch.device("cpu"))
    assert 3 * size.lora_per_rank == sum(p.numel() for p in backbone.trainable_parameters().values())


def test_the_presets_name_published_models() -> None:
    names = ("aesthetic", "sdxl-turbo-pickscore", "sdxl-lightning-pickscore", "lcm-aesthetic")
    paths = {Config.load(name).model.path for name in names}
    assert paths <= set(PUBLISHED)
