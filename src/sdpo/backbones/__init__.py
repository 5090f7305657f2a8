"""Pipeline families. Only the files in this folder know diffusers and peft."""

from sdpo.backbones.base import Backbone, Conditioning
from sdpo.backbones.load import check_path, embedded, family_of, load_backbone, peek, wrap_pipeline
from sdpo.backbones.pipeline import PipelineBackbone

__all__ = [
    "Backbone",
    "Conditioning",
    "PipelineBackbone",
    "check_path",
    "embedded",
    "family_of",
    "load_backbone",
    "peek",
    "wrap_pipeline",
]
