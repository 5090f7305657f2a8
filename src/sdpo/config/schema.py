"""The configuration of a run: one declaration for YAML files, `key=value` overrides and Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from sdpo.config import plain_yaml
from sdpo.config.algorithm_checks import check_policy_settings_unset, check_step_numbers, resolve_kl_form
from sdpo.config.branching_checks import check_branching
from sdpo.config.earlier import as_meant
from sdpo.config.load import DEFAULT_ALGORITHM, explain, merge, read_mapping
from sdpo.config.named import build_named, name_of, validate_named
from sdpo.config.secrets import find_secrets, refusal
from sdpo.config.sections import (
    NO_IMPORTS,
    AdvantageConfig,
    CheckpointConfig,
    EvaluateConfig,
    LoraConfig,
    ModelConfig,
    Positive,
    PromptsConfig,
    SampleConfig,
    ScoringConfig,
    Section,
    StopRule,
    TrainConfig,
    imports_classes,
)
from sdpo.errors import UserError
from sdpo.method.advantages import NORMALIZERS, Normalizer, StepwiseNormalizer
from sdpo.method.algorithms import ALGORITHMS, KINDS, Algorithm, AnyAlgorithm, Hybrid, RewardGradient
from sdpo.method.credit import CREDITS
from sdpo.system.log import is_main_process, logger


def _plain_callback(value: Any, info: ValidationInfo) -> Any:
    return validate_named(value, {}, object, "callback").plain if imports_classes(info) else value


CallbackValue = Annotated[str | dict[str, Any], BeforeValidator(_plain_callback)]


class Config(Section):
    """Everything that defines a run.

    `algorithm`: the name of an algorithm, and its fields; a name alone is the published setting. `callbacks`: your own
    classes, each a dotted path, or a mapping of `name` and fields.
    """

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    epochs: Positive = 100
    output_dir: str | None = None
    device: str = "auto"
    model: ModelConfig = ModelConfig()
    lora: LoraConfig | None = LoraConfig()
    prompts: PromptsConfig = PromptsConfig()
    rewards: Annotated[dict[str, float], Field(min_length=1)] = {"emoji_score": 1.0}
    reward_options: dict[str, dict[str, Any]] = {}
    algorithm: dict[str, Any] = {"name": DEFAULT_ALGORITHM}
    advantage: AdvantageConfig = AdvantageConfig()
    sample: SampleConfig = SampleConfig()
    train: TrainConfig = TrainConfig()
    scoring: ScoringConfig = ScoringConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stop_when: list[StopRule] = []
    trackers: list[str] = []
    callbacks: list[CallbackValue] = []

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, data: Any) -> Any:
        places = list(find_secrets({k: v for k, v in data.items() if k != "prompts"})) if isinstance(data, dict) else []
        if places:
            raise ValueError(refusal(places))
        return data

    @field_validator("algorithm", mode="before")
    @classmethod
    def _fill_in_fields(cls, value: Any, info: ValidationInfo) -> Any:
        """Add the algorithm's own defaults: its dataclass declares them."""
        value = {"name": DEFAULT_ALGORITHM, **value} if isinstance(value, Mapping) else value
        if not imports_classes(info):
            return {"name": value} if isinstance(value, str) else value
        found = validate_named(value, ALGORITHMS, KINDS, "algorithm")
        return {"name": found.name, **found.fields}

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Config:
        if imports_classes(info):
            self._check_kinds()
        if self.train.kl_form == "flow_grpo" and self.sample.noise_form != "flow_grpo":
            raise ValueError(
                "train.kl_form=flow_grpo is defined for sample.noise_form=flow_grpo, which is "
                f"{self.sample.noise_form} here: use train.kl_form=transition"
            )
        self._check_frozen_weights()
        self._check_rewards()
        self._check_batches()
        return self

    def _check_kinds(self) -> None:
        """Check the algorithm against the other sections, and set what it decides."""
        name, policy, gradient = self.algorithm["name"], self.policy_algorithm(), self.gradient_algorithm()
        self.train = resolve_kl_form(self.train, name, policy is not None, gradient is not None)
        if policy is not None:
            self._take_normalizer_of(policy)
            self._check_algorithm(policy)
            check_branching(self.sample, self.train, policy, name, self.build_normalizer())
        else:
            check_policy_settings_unset(self.sample, self.train, name)
            self._drop_advantages(name)
        if gradient is not None:
            check_step_numbers(gradient, self.sample)

    def _drop_advantages(self, name: str) -> None:
        """Set the section `advantage` to its defaults, and say so: nothing is normalised without branches."""
        if self.advantage != AdvantageConfig():
            if is_main_process():
                logger.warning("advantage: %s learns from no advantages; the section has no effect", name)
            self.advantage = AdvantageConfig()

    def _take_normalizer_of(self, algorithm: Algorithm[Any]) -> None:
        """Set the normaliser that is part of the algorithm's definition, and say so where another one was set.

        Single trajectories have no branches to compare: they are normalised by each prompt's last returns.
        """
        present, name = self.advantage.normalizer, self.algorithm["name"]
        own = algorithm.normalizer
        if own is None and algorithm.branches == 1 and isinstance(present, str):
            own = StepwiseNormalizer if NORMALIZERS[present].compares_branches else None
        if own is None or type(self._configured_normalizer()) is own:
            return
        chosen = name_of(own, NORMALIZERS)
        self.advantage = AdvantageConfig(**{**self.advantage.model_dump(), "normalizer": chosen})
        if present != AdvantageConfig().normalizer and is_main_process():
            logger.warning(
                "advantage.normalizer: %s takes %s in place of %s, which %s",
                *(
                    name,
                    chosen,
                    _name(present),
                    "compares branches" if algorithm.branches == 1 else "is not part of it",
                ),
            )

    def _check_algorithm(self, algorithm: Algorithm[Any]) -> None:
        name, sample = self.algorithm["name"], self.sample
        if algorithm.branches == 1 and self.build_normalizer().compares_branches:
            raise ValueError(
                f"advantage.normalizer={_name(self.advantage.normalizer)} compares branches, but algorithm.branches is "
                "1: use advantage.normalizer=stepwise or more branches"
            )
        if algorithm.takes_trajectories and self.train.accumulate_steps not in (None, "all"):
            raise ValueError(
                f"train.accumulate_steps is {self.train.accumulate_steps}, but the loss of {name} joins all steps of a "
                "trajectory: leave it at null"
            )
        if algorithm.takes_trajectories and self.train.timestep_fraction < 1:
            raise ValueError(
                f"train.timestep_fraction is {self.train.timestep_fraction:g}, but {name} needs all steps of a "
                "trajectory: set it to 1.0"
            )
        if algorithm.needs_log_prob and sample.eta == 0:
            raise ValueError(
                f"sample.eta is 0, which makes sampling deterministic, but algorithm {name} learns from "
                "log-probabilities of random steps: set sample.eta to 1.0 (published) or above 0"
            )
        if not algorithm.credit.trains_last_step and sample.num_steps == 1:
            credit = name_of(type(algorithm.credit), CREDITS)
            raise ValueError(
                f"algorithm.credit={credit} gives the last step no return, and sample.num_steps=1 has no other step: "
                "use algorithm.credit=step or more steps"
            )
        if sample.prompts_per_epoch < algorithm.credit.min_groups:
            raise ValueError(
                f"algorithm.credit={name_of(type(algorithm.credit), CREDITS)} compares groups, and "
                f"sample.prompts_per_epoch is {sample.prompts_per_epoch}: use {algorithm.credit.min_groups} or more"
            )

    def _check_frozen_weights(self) -> None:
        if self.model.text_encoders == "free" and self.lora is None:
            raise ValueError(
                "model.text_encoders=free with lora=null: a run that trains all weights writes the whole pipeline, "
                "text encoders included; use model.text_encoders=cpu"
            )
        if self.model.quantize is not None and self.lora is None:
            raise ValueError(
                f"model.quantize={self.model.quantize} with lora=null: only frozen weights can be quantised, and all "
                "are trained here; use a LoRA or model.quantize=null"
            )

    def _check_rewards(self) -> None:
        unused = sorted(set(self.reward_options) - {*self.rewards, *self.evaluate.observers})
        if unused:
            raise ValueError(f"reward_options has {', '.join(unused)}, which neither rewards nor evaluate names")
        trained = sorted(set(self.rewards) & set(self.evaluate.held_out))
        if trained:
            raise ValueError(f"evaluate.held_out names {', '.join(trained)}, which this run is trained on")

    def _check_batches(self) -> None:
        prompts, batch = self.sample.prompts_per_epoch, self.train.batch_size
        if prompts % batch:
            legal = [d for d in range(1, prompts + 1) if prompts % d == 0]
            close = sorted(sorted(legal, key=lambda d: abs(d - batch))[:2])
            raise ValueError(
                f"sample.prompts_per_epoch ({prompts}) must be a multiple of train.batch_size ({batch}), "
                f"so that every optimizer step sees a whole batch. "
                f"Nearest: train.batch_size={' or '.join(map(str, close))}, "
                f"or sample.prompts_per_epoch={max(1, round(prompts / batch)) * batch}"
            )

    def build_algorithm(self) -> AnyAlgorithm:
        """Build the algorithm with its settings.

        Raises:
            UserError: if the user's own class has changed since the configuration was read.
        """
        return build_named(self.algorithm, ALGORITHMS, KINDS, "algorithm")

    def policy_algorithm(self) -> Algorithm[Any] | None:
        """Build the algorithm of policy updates; None where the run makes none.

        Raises:
            UserError: if the user's own class has changed since the configuration was read.
        """
        algorithm = self.build_algorithm()
        if isinstance(algorithm, Hybrid):
            return algorithm.policy
        return algorithm if isinstance(algorithm, Algorithm) else None

    def gradient_algorithm(self) -> RewardGradient | None:
        """Build the algorithm of reward gradients; None where the run follows none.

        Raises:
            UserError: if the user's own class has changed since the configuration was read.
        """
        algorithm = self.build_algorithm()
        if isinstance(algorithm, Hybrid):
            return algorithm.gradient
        return algorithm if isinstance(algorithm, RewardGradient) else None

    def build_normalizer(self) -> Normalizer:
        """Build the advantage normaliser, without any statistics yet.

        Raises:
            UserError: if the user's own class has changed since the configuration was read.
        """
        policy = self.policy_algorithm()
        own = policy.own_normalizer() if policy is not None else None
        return own or self._configured_normalizer()

    def _configured_normalizer(self) -> Normalizer:
        value = self.advantage.normalizer
        if isinstance(value, str) and value in NORMALIZERS:
            names = {f.name for f in dataclasses.fields(NORMALIZERS[value]) if f.init}  # type: ignore[arg-type]
            fields = names & AdvantageConfig.model_fields.keys()
            value = {"name": value, **{name: getattr(self.advantage, name) for name in fields}}
        return build_named(value, NORMALIZERS, Normalizer, "normaliser")  # type: ignore[type-abstract]

    @classmethod
    def load(cls, source: str | Path | None = None, overrides: list[str] | None = None, **values: Any) -> Config:
        """Read a preset or YAML file with overrides.

        Args:
            source: a preset's name or a YAML file; None is the preset `emoji`.
            overrides: texts `section.key=value`, the value in YAML.
            values: overrides as keyword arguments, `section={"key": value}`.

        Raises:
            UserError: if there is no such preset or file, or a key or value is not legal.
        """
        return cls.parse(merge(source, overrides or [], values))

    @classmethod
    def of_run(cls, file: Path) -> Config:
        """Read the `config.yaml` of a run whose result is used and not trained on.

        No class that the file names is imported: the algorithm, the normaliser and the callbacks stay as the file has
        them, unchecked.

        Raises:
            UserError: if the file cannot be read, or another key or value is not legal.
        """
        return cls.parse(as_meant(read_mapping(file)), NO_IMPORTS)

    @classmethod
    def parse(cls, data: dict[str, Any], context: dict[str, Any] | None = None) -> Config:
        """Validate a mapping; one message names all mistakes.

        Args:
            data: sections and settings by name.
            context: `NO_IMPORTS`, or None to import and check the classes that the mapping names.

        Raises:
            UserError: if a key or value is not legal.
        """
        try:
            return cls.model_validate(data, context=context)
        except ValidationError as error:
            raise UserError(explain(error, cls)) from error

    def to_yaml(self) -> str:
        """The resolved configuration as YAML; parsing the text gives an equal configuration."""
        return plain_yaml.dump(self.model_dump(mode="json"))


def _name(value: str | dict[str, Any]) -> str:
    """The name in a value of a named object."""
    return value if isinstance(value, str) else str(value["name"])
