"""From a configuration to the parts of a run: `build` makes and joins them in one place."""

from sdpo.assembly.assemble import build, build_model
from sdpo.assembly.model_parts import ModelParts
from sdpo.assembly.parts import Parts

__all__ = ["ModelParts", "Parts", "build", "build_model"]
