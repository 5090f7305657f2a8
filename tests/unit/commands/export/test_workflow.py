"""The ComfyUI workflow of an export: a complete graph with the settings of the card, only where they are known."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.families import wrapped
from helpers.flow_pipelines import flux, stable_diffusion_3
from helpers.pipelines import PIPELINES, latent_consistency, stable_diffusion

from sdpo.commands.export.workflow import workflow
from sdpo.commands.model_card import Exported
from sdpo.config import Config
from sdpo.config.sections import FuseLoraConfig

EXPORTED = Exported(
    "run", "out", "tuned.safetensors", "those after epoch 2", True, 2, "a cat", 4, "DDIMScheduler", 1.5,
    {"height": 32, "width": 64},
)  # fmt: skip


def graph(make: Any, **model: Any) -> dict[str, Any] | None:
    """The workflow for a pipeline, where the run's section `model` has these settings."""
    config = Config.load("emoji")
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": "owner/model", **model})})
    return workflow(wrapped(make, scheduler=config.model.scheduler), config, EXPORTED)


def nodes(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    by_type: dict[str, list[dict[str, Any]]] = {}
    for node in found["nodes"]:
        by_type.setdefault(node["type"], []).append(node)
    return by_type


def check_links(found: dict[str, Any]) -> None:
    """Both ends of each link say what the link says; every input is linked, and every node is of use."""
    by_id = {node["id"]: node for node in found["nodes"]}
    assert list(by_id) == list(range(1, found["last_node_id"] + 1))
    assert [link[0] for link in found["links"]] == list(range(1, found["last_link_id"] + 1))
    for number, source, out, target, into, kind in found["links"]:
        output, given = by_id[source]["outputs"][out], by_id[target]["inputs"][into]
        assert number in output["links"] and given["link"] == number and output["type"] == given["type"] == kind
    for node in by_id.values():
        assert all(given["link"] for given in node["inputs"])
        assert node["type"] == "SaveImage" or any(output["links"] for output in node["outputs"])


@pytest.mark.parametrize(
    ("name", "loader", "latent", "sampling"),
    [
        ("StableDiffusionPipeline", "CheckpointLoaderSimple", "EmptyLatentImage", ["euler", "sgm_uniform"]),
        ("StableDiffusionXLPipeline", "CheckpointLoaderSimple", "EmptyLatentImage", ["euler_ancestral", "sgm_uniform"]),
        ("FluxPipeline", "CheckpointLoaderSimple", "EmptySD3LatentImage", ["euler", "simple"]),
        ("ZImagePipeline", "UNETLoader", "EmptySD3LatentImage", ["euler", "simple"]),
    ],
)
def test_the_graph_has_the_cards_settings(name: str, loader: str, latent: str, sampling: list[str]) -> None:
    found = graph(PIPELINES[name])
    assert found is not None
    check_links(found)
    by_type = nodes(found)
    assert loader in by_type
    assert [node["widgets_values"] for node in by_type["LoraLoaderModelOnly"]] == [["tuned.safetensors", 1.0]]
    assert [node["widgets_values"] for node in by_type["CLIPTextEncode"]] == [["a cat"], [""]]
    assert by_type[latent][0]["widgets_values"] == [64, 32, 1]
    (sampler,) = by_type["KSampler"]
    assert sampler["widgets_values"] == [0, "fixed", 4, 1.5, *sampling, 1.0]
    assert [given["name"] for given in sampler["inputs"]] == ["model", "positive", "negative", "latent_image"]


def test_the_base_models_file_and_the_lora_it_was_made_with() -> None:
    found = graph(stable_diffusion, fuse_lora=FuseLoraConfig(path="ByteDance/Hyper-SD", weight_name="h.safetensors"))
    assert found is not None
    by_type = nodes(found)
    assert by_type["CheckpointLoaderSimple"][0]["widgets_values"] == ["model.safetensors"]
    loras = [node["widgets_values"] for node in by_type["LoraLoaderModelOnly"]]
    assert loras == [["h.safetensors", 1.0], ["tuned.safetensors", 1.0]]
    check_links(found)


def test_the_schedule_of_an_evenly_spaced_scheduler() -> None:
    found = graph(stable_diffusion, scheduler={"name": "EulerDiscreteScheduler", "timestep_spacing": "linspace"})
    assert found is not None
    assert nodes(found)["KSampler"][0]["widgets_values"][-3:] == ["euler", "normal", 1.0]


@pytest.mark.parametrize(
    ("make", "model"),
    [
        (latent_consistency, {}),
        (stable_diffusion_3, {}),
        (PIPELINES["Flux2KleinPipeline"], {}),
        (lambda: flux(guidance_embeds=True), {}),
        (lambda: flux(use_dynamic_shifting=True), {}),
        (stable_diffusion, {"scheduler": {"beta_end": 0.013}}),
        (stable_diffusion, {"scheduler": {"timestep_spacing": "leading"}}),
        (stable_diffusion, {"scheduler": {"name": "LCMScheduler"}}),
    ],
)
def test_no_graph_where_comfyui_would_draw_otherwise(make: Any, model: dict[str, Any]) -> None:
    assert graph(make, **model) is None
