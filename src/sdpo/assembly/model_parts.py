"""The parts that draw images, as `assembly.build_model` makes them."""

from __future__ import annotations

from dataclasses import dataclass

from sdpo.backbones import PipelineBackbone
from sdpo.config import Config
from sdpo.distributed.processes import Processes
from sdpo.evaluation.evaluate import Drawing
from sdpo.loop.policy import Policy, PromptEmbeddings


@dataclass(frozen=True)
class ModelParts:
    """The parts that draw images.

    Attributes:
        config: the configuration that the parts were made from.
        processes: the processes of this launch.
        backbone: the model, on its device.
        policy: guidance and precision around the model's network.
        embeddings: the embeddings of all prompts.
        decode_batch: images a decoder call.
    """

    config: Config
    processes: Processes
    backbone: PipelineBackbone
    policy: Policy
    embeddings: PromptEmbeddings
    decode_batch: int

    def drawing(self, micro_batch: int) -> Drawing:
        """The parts that an evaluation draws its images with.

        Args:
            micro_batch: trajectories a network call.
        """
        eta = self.config.sample.eta
        return Drawing(self.policy, self.embeddings, eta, micro_batch, self.decode_batch, self.processes)
