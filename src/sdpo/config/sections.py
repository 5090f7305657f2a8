"""The sections of a configuration: each setting with its type, its range and its default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from sdpo.config.named import LARGEST, validate_named
from sdpo.method.advantages import NORMALIZERS, BufferedNormalizer, Normalizer
from sdpo.method.branching import AfterBranch

Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
MicroBatch = Literal["auto"] | Positive


class Section(BaseModel):
    """A part of a configuration: unknown keys, NaN and infinity are rejected."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


NO_IMPORTS = {"imports": False}
"""The validation context in which no class is imported that a configuration names; such settings are not checked."""


def imports_classes(info: ValidationInfo) -> bool:
    """Whether a validation may import the classes that a configuration names."""
    return info.context != NO_IMPORTS


class FuseLoraConfig(Section):
    """A LoRA that is merged into the base weights: a file, or a folder or hub name with the file's name."""

    path: str
    scale: float = 1.0
    weight_name: str | None = None


class ModelConfig(Section):
    """The model, the precision of its frozen weights, and how its network runs.

    `dtype`: null is the type that the model's authors publish on a GPU, and float32 on a CPU.
    `scheduler`: `name` of a diffusers scheduler, and settings, that replace the model's own. `fuse_lora`: a LoRA that
    is merged before training, such as one that makes a few-step model; the trained LoRA is added on top.
    `text_encoders`: where the text encoders go once all prompts are encoded. `quantize`: the frozen network's linear
    layers in 8 or 4 bits while a LoRA is trained; the LoRA is used with the unquantised model. `compile`: torch.compile
    of the network's blocks. `tf32`: float32 products in TF32, on GPUs that have it.
    """

    path: str = "emoji"
    revision: str = "main"
    variant: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    height: Positive | None = None
    width: Positive | None = None
    scheduler: dict[str, Any] | None = None
    fuse_lora: FuseLoraConfig | None = None
    text_encoders: Literal["keep", "cpu", "free"] = "keep"
    quantize: Literal["int8", "nf4"] | None = None
    compile: bool = False
    tf32: bool = False


class LoraConfig(Section):
    """Rank, alpha, suffixes of the adapted modules (null: the attention layers), and a LoRA to start from."""

    rank: Positive = 4
    alpha: Annotated[float, Field(gt=0)] = 4
    targets: list[str] | None = None
    path: str | None = None


class PromptsConfig(Section):
    """Training and unseen prompts: a named set, a .txt, .jsonl, .json or .csv file, or a list."""

    train: str | list[str] | list[dict[str, Any]] = "simple_animals"
    unseen: str | list[str] | list[dict[str, Any]] | None = None


def _plain_normalizer(value: Any, info: ValidationInfo) -> Any:
    if not imports_classes(info) or (isinstance(value, str) and value in NORMALIZERS):
        return value  # the fields of the package's own normalisers are settings of the section
    return validate_named(value, NORMALIZERS, Normalizer, "normaliser").plain  # type: ignore[type-abstract]


NormalizerValue = Annotated[str | dict[str, Any], BeforeValidator(_plain_normalizer)]


class AdvantageConfig(Section):
    """How returns become advantages.

    `normalizer`: `stepwise` is the published one; `prompt` pools a prompt's steps; `pair` divides by the standard
    deviation of the differences between branches; `group` by that of each group's branches, and is part of the
    algorithm grpo. Your own: a dotted path. `buffer_size` and `min_count` are the settings of `stepwise` and `prompt`.
    """

    normalizer: NormalizerValue = "stepwise"
    buffer_size: Positive = BufferedNormalizer.buffer_size
    min_count: Positive = BufferedNormalizer.min_count

    @model_validator(mode="before")
    @classmethod
    def _built_in_fields_are_settings(cls, data: Any) -> Any:
        """`{name: stepwise, buffer_size: 8}` sets `buffer_size` of this section."""
        if isinstance(data, Mapping) and isinstance(given := data.get("normalizer"), Mapping):
            if isinstance(name := given.get("name"), str) and name in NORMALIZERS:
                return {**data, **{key: value for key, value in given.items() if key != "name"}, "normalizer": name}
        return data

    @model_validator(mode="after")
    def _counts_can_be_reached(self) -> AdvantageConfig:
        if self.min_count > self.buffer_size:
            raise ValueError(
                f"min_count ({self.min_count}) is more than the {self.buffer_size} entries that buffer_size keeps, so "
                "that no prompt would ever have its own statistics; lower min_count or raise buffer_size"
            )
        return self


class SampleConfig(Section):
    """The trajectories of an epoch; the numbers count over all processes.

    `guidance_scale`: 1 is none; null is what the model's authors publish.
    `micro_batch`: groups per network call of one process; affects speed and memory only. In half precision set it to
    the same value as `train.micro_batch`. `noise_form`: how a flow model's steps get their noise, and `eta`: the level
    of that noise, both defined in `method/denoisers/flow.py`. `shared_noise`: whether the branches of a group begin at
    the same latent. `share_first_step`: evaluate the network once for all branches of a group at the first step, where
    their latents are the same, in sampling and in the update; `auto` does so where not even rounding changes.

    `branch_at`: the step, from 0, at which the branches of a group part: one trajectory leads there, and the update
    trains that step alone. `random` draws the step of each group; null lets the branches part at the first step, and
    every later step draws noise of its own. `branch_weights`: the weights w of the steps 0 … T−2 with `random`, each
    drawn with probability w / Σ w (null: all alike). `after_branch`: the noise after that step: `common` to all
    branches of a group, `none`, where the steps are deterministic, or `independent`. `lookahead`: the number of
    predicted clean images after that step at which sampling stops, and whose last one counts as the final image (null:
    none is left out).
    """

    num_steps: Positive = 50
    prompts_per_epoch: Annotated[int, Field(ge=1, le=10**6)] = 128
    guidance_scale: Annotated[float, Field(ge=1)] | None = None
    eta: Fraction = 1.0
    noise_form: Literal["preserving", "flow_grpo", "flow_sde"] = "preserving"
    micro_batch: MicroBatch = "auto"
    shared_noise: bool = True
    share_first_step: Literal["auto"] | bool = "auto"
    branch_at: Literal["random"] | Count | None = None
    branch_weights: list[Annotated[float, Field(ge=0, le=LARGEST)]] | None = None
    after_branch: AfterBranch = "common"
    lookahead: Positive | None = None

    @model_validator(mode="after")
    def _a_shared_step_begins_at_a_shared_latent(self) -> SampleConfig:
        if self.share_first_step is True and not self.shared_noise:
            raise ValueError("share_first_step=true needs shared_noise=true: the branches begin at different latents")
        return self


class TrainConfig(Section):
    """The update; `batch_size` counts the groups of an optimizer step over all processes.

    `first_steps`: the number of steps of each trajectory that are trained, from the noisiest on (null: all). At later
    steps σ is small, and the log-probability's gradient, which grows as 1/σ, is mostly noise.

    `accumulate_steps`: the visited steps of each group whose gradients one optimizer step averages: a number, or `all`
    of a pass (null: as the algorithm's authors do).

    `ema_decay`: the decay of the average of the weights, which is what is evaluated and saved (null: the last weights
    are). `ema_warmup`: begin with a smaller decay, so that the average soon forgets the weights of the start; `false`
    leaves these a share of ema_decayⁿ after n optimizer steps, which keeps a short run closer to the base model.

    `kl_weight`: the weight of the KL divergence from the reference model. `kl_form`: its scale: `transition` is the
    divergence of a step's two Gaussians; `flow_grpo` is that of Flow-GRPO, smaller by the step's length Δ, for
    `sample.noise_form=flow_grpo`; `clean` is that of two Gaussians of variance 1 around the predicted clean latents,
    ½ mean (x̂ − x̂_ref)², and needs no log-probability (null: `clean` for reward gradients, else `transition`; in a
    hybrid both updates are penalised, each in its form, where a set form penalises one of them alone).
    `reference`: the model that the divergence and the algorithms d3po and prdp refer to:
    `base` is the base model; `start` is the model that the run starts from, which differs where `lora.path` is set.

    `on_nonfinite`: `stop` ends the run where a loss, gradient or log-probability is NaN or infinite; `skip` leaves out
    that optimizer step and counts it in `train/skipped_steps`.
    """

    batch_size: Positive = 64
    micro_batch: MicroBatch = "auto"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Count = 0
    inner_epochs: Positive = 1
    timestep_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    first_steps: Positive | None = None
    step_shuffle: bool = True
    accumulate_steps: Literal["all"] | Positive | None = None
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    gradient_checkpointing: bool = False
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    ema_warmup: bool = True
    kl_weight: Annotated[float, Field(ge=0)] = 0.0
    kl_form: Literal["transition", "flow_grpo", "clean"] | None = None
    reference: Literal["base", "start"] = "base"
    on_nonfinite: Literal["stop", "skip"] = "stop"

    @property
    def policy_kl_weight(self) -> float:
        """`kl_weight` in policy updates: 0 where the form is that of reward gradients."""
        return 0.0 if self.kl_form == "clean" else self.kl_weight

    @property
    def gradient_kl_weight(self) -> float:
        """`kl_weight` in updates by reward gradients: 0 where the form is that of policy updates."""
        return self.kl_weight if self.kl_form in ("clean", None) else 0.0

    @model_validator(mode="after")
    def _can_skip(self) -> TrainConfig:
        if self.on_nonfinite == "skip" and self.optimizer != "adamw":
            raise ValueError(f"on_nonfinite=skip needs optimizer=adamw: {self.optimizer} cannot skip a step")
        return self

    @model_validator(mode="after")
    def _warms_up_an_average(self) -> TrainConfig:
        if not self.ema_warmup and self.ema_decay is None:
            raise ValueError(
                "ema_warmup is false, but no average is kept (ema_decay is null): set train.ema_decay, or "
                "train.ema_warmup=true for a run without an average"
            )
        return self


class EvaluateConfig(Section):
    """Evaluation on fixed seeds: before training, every `every` epochs (0: never in between), and after training.

    `prompts`: the prompts that are evaluated (null: the training prompts). `max_prompts`: the largest number of these
    and of the unseen prompts; a longer list is cut to a fixed choice (null: no limit).

    `eta`: the sampler that draws the images. null: as the pipeline's own call does, which is what users of the model
    get; a number: the training sampler with that η. Before and after training the training sampler's images are scored
    too.

    `images_per_prompt`: images before and after training. `images_per_prompt_between`: images in between (null: as
    many). Monitors need two images of a prompt; where an evaluation has one, a second one is drawn and not scored.
    `held_out`: rewards that are measured and not trained on. `judge`: a reward that is 1 where an image shows what its
    prompt names, else 0.
    """

    every: Count = 10
    steps: Annotated[list[Positive], Field(min_length=1)] = [1, 2, 4, 8]
    prompts: str | list[str] | list[dict[str, Any]] | None = None
    max_prompts: Positive | None = 128
    eta: Fraction | None = None
    images_per_prompt: Positive = 2
    images_per_prompt_between: Positive | None = None
    judge: str | None = None
    held_out: list[str] = []

    @property
    def observers(self) -> list[str]:
        """Rewards that are measured in evaluations only."""
        return list(dict.fromkeys([*self.held_out, *([self.judge] if self.judge else [])]))

    @property
    def images_between(self) -> int:
        """Images per prompt of the evaluations in between, and of the training sampler's at the ends."""
        return self.images_per_prompt_between or self.images_per_prompt

    @property
    def monitored(self) -> int:
        """Images per prompt that monitors see at every evaluation; two or more, as diversity is that of one prompt."""
        return max(2, min(self.images_per_prompt, self.images_between))


class StopRule(Section):
    """A rule that ends the run when a metric is below or above a bound in `patience` evaluations in a row.

    With `relative_to: base` the bound is a factor of the base model's value.
    """

    metric: str
    below: float | None = None
    above: float | None = None
    relative_to: Literal["base"] | None = None
    patience: Positive = 1

    @model_validator(mode="after")
    def _one_bound(self) -> StopRule:
        if (self.below is None) == (self.above is None):
            raise ValueError(f"a rule on {self.metric} needs one bound: set below or above")
        return self


class ScoringConfig(Section):
    """How images are scored.

    `decode_batch`: images per decoder call. `batch_size`: images per reward call. `device`: the device of the reward
    models. `offload`: keep reward models on the CPU while the denoising network is trained. `timeout`: seconds that one
    call of a reward may take before the run ends (null: no limit).
    """

    decode_batch: MicroBatch = "auto"
    batch_size: Positive = 64
    device: str = "auto"
    offload: bool = False
    timeout: Annotated[float, Field(gt=0)] | None = 1800.0


class CheckpointConfig(Section):
    """A checkpoint every `every` epochs; the newest `keep_last` and the `keep_best` best evaluated ones are kept.

    With `stop_when` there is also a checkpoint at each evaluation at which no rule holds.
    """

    every: Positive = 1
    keep_last: Positive = 3
    keep_best: Count = 1
