"""The parts that draw images, as `assembly.build_model` makes them."""

from __future__ import annotations

from dataclasses import dataclass

from sdpo.backbones import PipelineBackbone
from sdpo.config import Config
from sdpo.distributed.processes import Processes
from sdpo.evaluation.conditions import Conditions, conditions_of
from sdpo.evaluation.evaluate import Drawing
from sdpo.evaluation.sampler import Sampler
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
        """The parts that an evaluation draws its images with, by the sampler that `evaluate.eta` names.

        Args:
            micro_batch: trajectories a network call.
        """
        return Drawing(
            policy=self.policy,
            embeddings=self.embeddings,
            sampler=Sampler(self.config.evaluate.eta),
            training=Sampler(self.config.sample.eta),
            conditions=self.conditions,
            micro_batch=micro_batch,
            decode_batch=self.decode_batch,
            processes=self.processes,
        )

    def conditions(self, sampler: Sampler) -> Conditions:
        """The conditions of an evaluation by a sampler."""
        return conditions_of(self.config, self.policy, sampler)
