"""A ComfyUI workflow that draws with an exported LoRA, as the base model's own pipeline call does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from sdpo.backbones import PipelineBackbone
from sdpo.commands.model_card import Exported
from sdpo.config import Config

_SAMPLERS = {
    "DDIMScheduler": "euler",  # deterministic DDIM is Euler's method
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
}
"""ComfyUI's sampler for the schedulers of pipelines with a UNet."""

_SPACINGS = {"trailing": "sgm_uniform", "linspace": "normal"}
"""ComfyUI's scheduler with the same timesteps, by diffusers' `timestep_spacing`."""


@dataclass(frozen=True)
class Output:
    """An output of a node.

    Attributes:
        node: the node's number, from 1.
        slot: the output's place in the node, from 0.
        kind: the type of what it hands on, such as `MODEL`.
    """

    node: int
    slot: int
    kind: str


@dataclass
class Graph:
    """The nodes and links of a workflow, in the format that ComfyUI's page opens.

    Attributes:
        nodes: the nodes, numbered from 1.
        links: each link's number, source node and slot, target node and slot, and type.
    """

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)

    def add(self, name: str, widgets: Sequence[Any], outputs: Sequence[str], **inputs: Output) -> list[Output]:
        """Add a node.

        Args:
            name: the node's class.
            widgets: the values of its fields.
            outputs: the types of its outputs.
            inputs: what its inputs are linked to, by name.

        Returns:
            The node's outputs.
        """
        number = len(self.nodes) + 1
        linked = []
        for slot, (key, source) in enumerate(inputs.items()):
            link = len(self.links) + 1
            self.links.append([link, source.node, source.slot, number, slot, source.kind])
            self.nodes[source.node - 1]["outputs"][source.slot]["links"].append(link)
            linked.append({"name": key, "type": source.kind, "link": link})
        self.nodes.append(
            {
                "id": number,
                "type": name,
                "pos": [40 + 360 * ((number - 1) // 3), 80 + 220 * ((number - 1) % 3)],
                "size": [320, 180],
                "flags": {},
                "order": number - 1,
                "mode": 0,
                "inputs": linked,
                "outputs": [
                    {"name": kind, "type": kind, "slot_index": slot, "links": []} for slot, kind in enumerate(outputs)
                ],
                "properties": {"Node name for S&R": name},
                "widgets_values": list(widgets),
            }
        )
        return [Output(number, slot, kind) for slot, kind in enumerate(outputs)]

    def as_json(self) -> dict[str, Any]:
        """The workflow as ComfyUI saves it."""
        return {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }


def workflow(backbone: PipelineBackbone, config: Config, exported: Exported) -> dict[str, Any] | None:
    """Return a workflow, or None where ComfyUI has no loader or no schedule that is known to match the pipeline's.

    The files of the base model have the names under which they are published for ComfyUI, or the name of the model's
    folder; the user chooses others in the loaders' fields.

    Args:
        backbone: the base model.
        config: the run's configuration.
        exported: what the export's model card describes; it has a LoRA.
    """
    name, sampling = type(backbone.pipeline).__name__, _sampling(backbone, config)
    if name not in _BASE_MODELS or sampling is None:
        return None
    graph, (load, latent_node) = Graph(), _BASE_MODELS[name]
    model, clip, vae = load(graph, backbone, config)
    for file, strength in _loras(config, exported):
        (model,) = graph.add("LoraLoaderModelOnly", [file, strength], ["MODEL"], model=model)
    (positive,) = graph.add("CLIPTextEncode", [exported.prompt], ["CONDITIONING"], clip=clip)
    (negative,) = graph.add("CLIPTextEncode", [""], ["CONDITIONING"], clip=clip)
    height, width = exported.size
    (latent,) = graph.add(latent_node, [width, height, 1], ["LATENT"])
    (samples,) = graph.add(
        "KSampler",
        [0, "fixed", exported.steps, exported.guidance_scale, *sampling, 1.0],
        ["LATENT"],
        model=model,
        positive=positive,
        negative=negative,
        latent_image=latent,
    )
    (image,) = graph.add("VAEDecode", [], ["IMAGE"], samples=samples, vae=vae)
    graph.add("SaveImage", ["sdpo"], [], images=image)
    return graph.as_json()


def _sampling(backbone: PipelineBackbone, config: Config) -> tuple[str, str] | None:
    """Return ComfyUI's sampler and scheduler that draw as the pipeline's own call; None where none is known to."""
    scheduler, changed = backbone.pipeline.scheduler, set(config.model.scheduler or {})
    if backbone.guidance != "classifier-free" or changed - {"name", "timestep_spacing"}:
        return None
    if backbone.component == "unet":
        sampler = _SAMPLERS.get(type(scheduler).__name__)
        spacing = _SPACINGS.get(scheduler.config.get("timestep_spacing"))
        return (sampler, spacing) if sampler and spacing else None
    return None if scheduler.config.get("use_dynamic_shifting") else ("euler", "simple")


def _load_checkpoint(graph: Graph, backbone: PipelineBackbone, config: Config) -> list[Output]:
    """Add the node that loads network, text encoders and VAE from one file."""
    del backbone
    name = config.model.path.rstrip("/").rsplit("/", 1)[-1]
    return graph.add("CheckpointLoaderSimple", [f"{name}.safetensors"], ["MODEL", "CLIP", "VAE"])


def _load_z_image(graph: Graph, backbone: PipelineBackbone, config: Config) -> list[Output]:
    """Add the nodes that load Z-Image-Turbo from the files of Comfy-Org, and shift its schedule."""
    del config
    (loaded,) = graph.add("UNETLoader", ["z_image_turbo_bf16.safetensors", "default"], ["MODEL"])
    (clip,) = graph.add("CLIPLoader", ["qwen_3_4b.safetensors", "lumina2", "default"], ["CLIP"])
    (vae,) = graph.add("VAELoader", ["ae.safetensors"], ["VAE"])
    shift = backbone.pipeline.scheduler.config.shift
    (model,) = graph.add("ModelSamplingAuraFlow", [shift], ["MODEL"], model=loaded)
    return [model, clip, vae]


_BASE_MODELS: dict[str, tuple[Callable[[Graph, PipelineBackbone, Config], list[Output]], str]] = {
    "StableDiffusionPipeline": (_load_checkpoint, "EmptyLatentImage"),
    "StableDiffusionXLPipeline": (_load_checkpoint, "EmptyLatentImage"),
    "FluxPipeline": (_load_checkpoint, "EmptySD3LatentImage"),
    "ZImagePipeline": (_load_z_image, "EmptySD3LatentImage"),
}
"""The loading of the base model, and the node that makes latents, by pipeline class."""


def _loras(config: Config, exported: Exported) -> list[tuple[str, float]]:
    """Return the files and strengths of the LoRAs: the one that the base model was made with, and the exported one."""
    fused = config.model.fuse_lora
    first = [(fused.weight_name or PurePath(fused.path).name, fused.scale)] if fused else []
    return [*first, (str(exported.weight_name), 1.0)]
