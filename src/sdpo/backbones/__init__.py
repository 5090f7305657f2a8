"""Pipeline families. Only the files in this folder know diffusers and peft."""

from sdpo.backbones.base import Backbone, Conditioning
from sdpo.backbones.load import check_path, embedded, family_of, load_backbone, pipeline_index, wrap_pipeline
from sdpo.backbones.model_index import Peek
from sdpo.backbones.pipeline import PipelineBackbone

__all__ = [
    "Backbone",
    "Conditioning",
    "Peek",
    "PipelineBackbone",
    "check_path",
    "embedded",
    "family_of",
    "load_backbone",
    "pipeline_index",
    "wrap_pipeline",
]
