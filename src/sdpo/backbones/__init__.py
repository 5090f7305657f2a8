"""Pipeline families. Only the files in this folder know diffusers and peft."""

from sdpo.backbones.base import Backbone, Conditioning, PipelineBackbone
from sdpo.backbones.load import load_backbone, wrap_pipeline

__all__ = ["Backbone", "Conditioning", "PipelineBackbone", "load_backbone", "wrap_pipeline"]
