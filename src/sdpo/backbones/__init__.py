"""Text-to-image models behind one interface. Only this package imports diffusers and peft."""

from sdpo.backbones.base import Backbone, Conditioning
from sdpo.backbones.embedded import is_embedded
from sdpo.backbones.load import check_path, embedded, family_of, load_backbone, own_dtype, pipeline_index, wrap_pipeline
from sdpo.backbones.loaded import origin
from sdpo.backbones.model_index import ModelFacts
from sdpo.backbones.pipeline import PipelineBackbone

__all__ = [
    "Backbone",
    "Conditioning",
    "ModelFacts",
    "PipelineBackbone",
    "check_path",
    "embedded",
    "family_of",
    "is_embedded",
    "load_backbone",
    "origin",
    "own_dtype",
    "pipeline_index",
    "wrap_pipeline",
]
