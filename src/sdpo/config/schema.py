"""The configuration: one declaration for YAML files, `key=value` overrides and Python."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from sdpo.config import plain_yaml
from sdpo.config.secrets import find_secrets, refusal
from sdpo.errors import UserError, nearest
from sdpo.method.algorithms import ALGORITHMS, Algorithm

PRESETS = Path(__file__).parents[1] / "presets"
DEFAULT_PRESET = "emoji"

_LARGEST = 2**31 - 1
Positive = Annotated[int, Field(ge=1, le=_LARGEST)]
Count = Annotated[int, Field(ge=0, le=_LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
MicroBatch = Literal["auto"] | Positive


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class FuseLoraConfig(_Section):
    """A LoRA that becomes part of the base weights: a file, a folder or a hub name, and the file's name in these."""

    path: str
    scale: float = 1.0
    weight_name: str | None = None


class ModelConfig(_Section):
    """Which model, the precision of its frozen weights, and how its network runs.

    `scheduler`: `name` of a diffusers scheduler, and settings, that replace the model's own. `fuse_lora`: one that
    makes it a few-step model, say; the trained LoRA comes on top. `text_encoders`: where they go once all prompts are
    encoded. `quantize`: the frozen network's linear layers in 8 or 4 bits while a LoRA is trained on them; that then
    goes with the model as published. `compile`: torch.compile of the network's blocks; `tf32`: float32 products in
    TF32, on GPUs that have it.
    """

    path: str = "emoji"
    revision: str = "main"
    variant: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    height: Positive | None = None
    width: Positive | None = None
    scheduler: dict[str, Any] | None = None
    fuse_lora: FuseLoraConfig | None = None
    text_encoders: Literal["keep", "cpu", "free"] = "keep"
    quantize: Literal["int8", "nf4"] | None = None
    compile: bool = False
    tf32: bool = False


class LoraConfig(_Section):
    """LoRA rank, alpha, suffixes of the modules it is put on (null: attention), and one to start from."""

    rank: Positive = 4
    alpha: Annotated[float, Field(gt=0)] = 4
    targets: list[str] | None = None
    path: str | None = None


class PromptsConfig(_Section):
    """A named set, a .txt or .jsonl file, or a list, each."""

    train: str | list[str] | list[dict[str, Any]] = "simple_animals"
    unseen: str | list[str] | list[dict[str, Any]] | None = None


class AdvantageConfig(_Section):
    """How returns become advantages.

    `stepwise` is the published normaliser; `prompt` pools a prompt's steps; `pair` divides by the spread of the pairs'
    own differences; `group` by that of each group's branches, and is always used by grpo, which it defines.
    """

    normalizer: Literal["stepwise", "prompt", "pair", "group"] = "stepwise"
    buffer_size: Positive = 32
    min_count: Positive = 16

    @model_validator(mode="after")
    def _counts_can_be_reached(self) -> AdvantageConfig:
        if self.min_count > self.buffer_size:
            raise ValueError(
                f"min_count ({self.min_count}) is more than buffer_size ({self.buffer_size}) keeps: no prompt would "
                "ever have statistics of its own"
            )
        return self


class SampleConfig(_Section):
    """Trajectories of an epoch; the numbers are global, `micro_batch` (groups in a network call) is the machine's.

    `noise_form`: how a flow model's steps get their noise; `eta` is its level (see `denoisers/flow.py`).
    `shared_noise`: the branches of a group begin at one latent; else at one each.
    `share_first_step`: one network evaluation for all branches of a group where their latents are the same, in sampling
    and in the update; `auto` does so where not even rounding changes.
    """

    num_steps: Positive = 50
    prompts_per_epoch: Annotated[int, Field(ge=1, le=10**6)] = 128
    guidance_scale: Annotated[float, Field(ge=1)] = 1.0
    eta: Fraction = 1.0
    noise_form: Literal["preserving", "flow_grpo"] = "preserving"
    micro_batch: MicroBatch = "auto"
    shared_noise: bool = True
    share_first_step: Literal["auto"] | bool = "auto"

    @model_validator(mode="after")
    def _a_shared_step_begins_at_a_shared_latent(self) -> SampleConfig:
        if self.share_first_step is True and not self.shared_noise:
            raise ValueError("share_first_step=true needs shared_noise=true: the branches begin at different latents")
        return self


class TrainConfig(_Section):
    """The update; `batch_size` counts groups an optimizer step over all processes.

    `first_steps` trains so many steps of each trajectory, from the noisiest on. At later ones σ is small, and the
    log-probability's gradient, which grows as 1/σ, is mostly noise.

    `on_nonfinite`: what a loss, gradient or log-probability that is NaN or infinite does: it ends the run, or its
    optimizer step is skipped and counted in `train/skipped_steps`.
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
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    gradient_checkpointing: bool = False
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    kl_weight: Annotated[float, Field(ge=0)] = 0.0
    on_nonfinite: Literal["stop", "skip"] = "stop"

    @model_validator(mode="after")
    def _can_skip(self) -> TrainConfig:
        if self.on_nonfinite == "skip" and self.optimizer != "adamw":
            raise ValueError(f"on_nonfinite=skip needs optimizer=adamw: {self.optimizer} cannot leave out a step")
        return self


class EvaluateConfig(_Section):
    """Evaluation on fixed seeds: before, every `every` epochs (0: never in between), and after.

    `images_per_prompt` holds before and after; `images_per_prompt_between` (null: the same) for the curve. `held_out`
    are rewards that are measured and not trained on, `judge` is one that says 1 where the right thing is recognised.
    """

    every: Count = 10
    steps: Annotated[list[Positive], Field(min_length=1)] = [1, 2, 4, 8]
    images_per_prompt: Positive = 2
    images_per_prompt_between: Positive | None = None
    judge: str | None = None
    held_out: list[str] = []

    @property
    def observers(self) -> list[str]:
        """Rewards that only evaluations ask."""
        return list(dict.fromkeys([*self.held_out, *([self.judge] if self.judge else [])]))

    @property
    def monitored(self) -> int:
        """Images a prompt that every evaluation draws, so that monitors always see the same ones."""
        return min(self.images_per_prompt, self.images_per_prompt_between or self.images_per_prompt)


class StopRule(_Section):
    """End the run where a metric of the evaluations is below or above a bound, `patience` evaluations in a row.

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
            raise ValueError(f"a rule on {self.metric} needs one bound, below or above")
        return self


class ScoringConfig(_Section):
    """How images are scored: images in a decoder call, images in a reward call, where the rewards lie.

    `offload` keeps reward models on the CPU while the denoising network is trained. `timeout`: seconds that one call of
    a reward may take before the run ends (null: for ever).
    """

    decode_batch: MicroBatch = "auto"
    batch_size: Positive = 64
    device: str = "auto"
    offload: bool = False
    timeout: Annotated[float, Field(gt=0)] | None = 1800.0


class CheckpointConfig(_Section):
    """A checkpoint every `every` epochs; the newest `keep_last` and the `keep_best` best evaluated ones stay.

    With `stop_when` also one at each evaluation at which no rule holds.
    """

    every: Positive = 1
    keep_last: Positive = 3
    keep_best: Count = 1


class Config(_Section):
    """Everything that defines a run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    epochs: Positive = 100
    output_dir: str | None = None
    device: str = "auto"
    model: ModelConfig = ModelConfig()
    lora: LoraConfig | None = LoraConfig()
    prompts: PromptsConfig = PromptsConfig()
    rewards: Annotated[dict[str, float], Field(min_length=1)] = {"emoji_score": 1.0}
    reward_options: dict[str, dict[str, Any]] = {}
    algorithm: dict[str, Any] = {"name": "sdpo"}  # or a name alone: that algorithm as published
    advantage: AdvantageConfig = AdvantageConfig()
    sample: SampleConfig = SampleConfig()
    train: TrainConfig = TrainConfig()
    scoring: ScoringConfig = ScoringConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stop_when: list[StopRule] = []
    trackers: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, data: Any) -> Any:
        places = list(find_secrets({k: v for k, v in data.items() if k != "prompts"})) if isinstance(data, dict) else []
        if places:
            raise ValueError(refusal(places))
        return data

    @field_validator("algorithm", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("algorithm")
    @classmethod
    def _resolve_algorithm(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Fill in the algorithm's own defaults: its dataclass is the declaration."""
        name = value.get("name", "sdpo")
        if not isinstance(name, str) or name not in ALGORITHMS:
            raise ValueError(f"there is no algorithm {name!r}{nearest(str(name), ALGORITHMS)}")
        fields = {f.name for f in dataclasses.fields(ALGORITHMS[name])}  # type: ignore[arg-type]
        settings = {k: v for k, v in value.items() if k != "name"}
        for key in settings:
            if key not in fields:
                raise ValueError(f"unknown key {key!r} of algorithm {name}{nearest(str(key), fields)}")
        built = dataclasses.asdict(TypeAdapter(ALGORITHMS[name]).validate_python(settings))  # type: ignore[call-overload]
        for key, setting in built.items():
            if isinstance(setting, int | float) and not abs(setting) <= _LARGEST:  # a NaN is not, either
                raise ValueError(f"{key} of algorithm {name} must be a finite number of at most {_LARGEST}")
        return {"name": name, **built}

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        algorithm = self.build_algorithm()
        if algorithm.normalizer is not None:
            self.advantage = self.advantage.model_copy(update={"normalizer": algorithm.normalizer})
        if algorithm.branches == 1 and self.advantage.normalizer in ("pair", "group"):
            raise ValueError(
                f"advantage.normalizer={self.advantage.normalizer} compares branches, but algorithm.branches is 1: use "
                "advantage.normalizer=stepwise or more branches"
            )
        if algorithm.unit == "trajectory" and self.train.timestep_fraction < 1:
            raise ValueError(
                f"train.timestep_fraction is {self.train.timestep_fraction:g}, but {self.algorithm['name']} needs all "
                "steps of a trajectory: set it to 1.0"
            )
        if ALGORITHMS[self.algorithm["name"]].needs_log_prob and self.sample.eta == 0:
            raise ValueError(
                f"sample.eta is 0, which makes sampling deterministic, but algorithm {self.algorithm['name']} "
                "learns from log-probabilities of random steps: set sample.eta to 1.0 (published) or above 0"
            )
        if self.algorithm.get("credit") == "future" and self.sample.num_steps == 1:
            raise ValueError(
                "algorithm.credit=future learns nothing at sample.num_steps=1: no reward follows the only step; "
                "use algorithm.credit=step or more steps"
            )
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
        unused = sorted(set(self.reward_options) - {*self.rewards, *self.evaluate.observers})
        if unused:
            raise ValueError(f"reward_options has {', '.join(unused)}, which neither rewards nor evaluate names")
        trained = sorted(set(self.rewards) & set(self.evaluate.held_out))
        if trained:
            raise ValueError(f"evaluate.held_out names {', '.join(trained)}, which this run is trained on")
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
        return self

    def build_algorithm(self) -> Algorithm[Any]:
        """The algorithm with its settings."""
        settings = {k: v for k, v in self.algorithm.items() if k != "name"}
        return ALGORITHMS[self.algorithm["name"]](**settings)

    @classmethod
    def load(cls, source: str | Path | None = None, overrides: list[str] | None = None, **values: Any) -> Config:
        """A preset or YAML file with overrides.

        Args:
            source: a preset's name or a YAML file; None is the preset `emoji`.
            overrides: strings `section.key=value`, the value in YAML.
            values: overrides as keyword arguments, `section={"key": value}`.

        Raises:
            UserError: if there is no such preset or file, or a key or value is not legal.
        """
        data = _read(source if source is not None else DEFAULT_PRESET)
        # An algorithm is named before its settings, wherever the user wrote its name.
        naming = ("algorithm=", "algorithm.name=")
        for override in sorted(overrides or [], key=lambda text: not text.startswith(naming)):
            _apply(data, override)
        for key, value in values.items():
            both = isinstance(value, dict) and isinstance(data.get(key), dict) and key not in WHOLE
            other = key == "algorithm" and isinstance(value, dict) and _names_another(data, value.get("name"))
            data[key] = {**data[key], **value} if both and not other else value
        return cls.parse(data)

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Config:
        """Validate a mapping; all mistakes in one message.

        Raises:
            UserError: if a key or value is not legal.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise UserError("config: " + "\n        ".join(map(_explain, error.errors()))) from error

    def to_yaml(self) -> str:
        """The resolved configuration; parsing it gives this one again."""
        return plain_yaml.dump(self.model_dump(mode="json"))


# What may differ when a run is resumed, sections and fields: none of it changes what the next epoch computes.
RESUMABLE = (
    "output_dir",
    "device",
    "evaluate",
    "checkpoint",
    "stop_when",
    "trackers",
    "scoring",
    "model.text_encoders",
    "sample.micro_batch",
    "train.micro_batch",
    "train.gradient_checkpointing",
    "train.on_nonfinite",
)


def check_same_run(config: Config, stored_file: Path) -> None:
    """Refuse to resume a run with a configuration that would have computed something else.

    Raises:
        UserError: naming what differs, field by field, and what may differ.
    """
    if not stored_file.is_file():
        raise UserError(
            f"{stored_file.parent} holds checkpoints, but not the {stored_file.name} of their run: put it back, or "
            "name another --output-dir."
        )
    try:
        # A field that it lacks was added since, and had its default then.
        stored = Config.parse(_read(stored_file)).model_dump(mode="json")
    except UserError as error:
        raise UserError(f"{stored_file} is of no run that can be gone on with: {error}") from error
    # A learning rate that decays towards the last epoch depends on which that is.
    resumable = [*RESUMABLE, *(["epochs"] if config.train.lr_schedule == "constant" else [])]
    changed = [
        f"  {key}: {old} → {new}"
        for key, (old, new) in differences(stored, config.model_dump(mode="json"), frozenset(resumable)).items()
    ]
    if changed:
        more = ""
        if "epochs" not in resumable and config.lora is not None:
            more = (
                ". Not more epochs, as the learning rate decays towards the last: start a new run from this result, by "
                f"lora.path={stored_file.parent / 'lora'}"
            )
        raise UserError(
            "\n".join([f"{stored_file.parent} holds a run of another configuration:", *changed])
            + "\nName another --output-dir, or repeat the command that made it to resume. What may be changed then: "
            + ", ".join(resumable)
            + more
        )


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], ignored: frozenset[str]
) -> dict[str, tuple[Any, Any]]:
    """In what two configurations differ, as `section.key` → both values, sorted by key.

    A setting that one of them lacks has its default there: it was added since. One without a default is `(not set)`,
    but for the settings of another algorithm, which are left out.

    Args:
        first: as `config.yaml` holds it.
        second: likewise.
        ignored: sections and settings that may differ.
    """
    found = dict(_differences(first, second, ignored, "", Config().model_dump(mode="json")))
    return dict(sorted(found.items()))


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any], ignored: frozenset[str], prefix: str, defaults: Any
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in first.keys() & second.keys() if prefix == "algorithm." else first.keys() | second.keys():
        name, default = f"{prefix}{key}", defaults.get(key, "(not set)") if isinstance(defaults, dict) else "(not set)"
        one, other = first.get(key, default), second.get(key, default)
        if name in ignored:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping) and key not in WHOLE:
            yield from _differences(one, other, ignored, f"{name}.", default)
        elif one != other:
            yield name, (one, other)


WHOLE = {"rewards"}  # mappings that an override replaces as a whole: their keys are names, not settings


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


def preset_summary(name: str) -> str:
    """The first comment line of a preset."""
    return (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def _read(source: str | Path) -> dict[str, Any]:
    path = PRESETS / f"{source}.yaml" if str(source) in preset_names() else Path(source)
    if not os.path.isfile(path):  # Path.is_file raises for names that no file can have
        raise UserError(
            f"there is no preset {str(source)!r}{nearest(str(source), preset_names())} and no such file. "
            f"Presets: {', '.join(preset_names())}; or give a YAML file."
        )
    return read_mapping(path)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file is an empty one.

    Raises:
        UserError: if it cannot be read, or holds something else.
    """
    try:
        data = plain_yaml.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a mapping of keys to values, not a {type(data).__name__}")
    return data


def parse_assignment(text: str, what: str, example: str = "train.learning_rate=3e-5") -> tuple[str, Any]:
    """`key=value`, the value in YAML.

    Raises:
        UserError: naming `what`, if it is not of that form.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{what} {text!r}: expected key=value, such as {example}")
    try:
        return key, plain_yaml.parse(value)
    except ValueError as error:
        raise UserError(f"{what} {text!r}: the value is not YAML: {error}") from error


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The words of a command line as `Config.load` takes them: a preset or file, if one is named, and overrides.

    Raises:
        UserError: if several presets or files are named.
    """
    sources = [w for w in words if "=" not in w]
    if len(sources) > 1:
        raise UserError(
            f"expected one preset or file, got {', '.join(sources)}. Overrides look like section.key=value, without "
            "spaces around =, and in quotes where the value has some: 'rewards={colorfulness: 1.0}'"
        )
    return sources[0] if sources else None, [w for w in words if "=" in w]


def _apply(data: dict[str, Any], override: str) -> None:
    key, value = parse_assignment(override, "override")
    *sections, last = key.split(".")
    if sections == ["algorithm"] and isinstance(data.get("algorithm"), str):
        data["algorithm"] = {"name": data["algorithm"]}  # named alone before, now with settings
    if key == "algorithm.name" and _names_another(data, value):
        data["algorithm"] = {}  # the settings were those of another algorithm
    target = data
    for section in sections:
        if not isinstance(target.get(section), dict):
            target[section] = {}
        target = target[section]
    target[last] = value


def _names_another(data: dict[str, Any], name: Any) -> bool:
    """Whether an override's algorithm is none that `data` has settings of."""
    section = data.get("algorithm", {})
    return name is not None and name != (section.get("name", "sdpo") if isinstance(section, dict) else section)


def _explain(error: Any) -> str:
    """One validation error as a sentence, with the nearest key where one is unknown."""
    location = [str(part) for part in error["loc"]]
    where = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"unknown key {where!r}{nearest(location[-1], _keys(location[:-1]))}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{where}: {message}" if where else message
    form = {"list_type": "; write [1, 2, 4]", "dict_type": "; write {name: value}"}.get(error["type"], "")
    return f"{where}: {error['msg']}, got {error['input']!r}{form}"


def _keys(sections: list[str]) -> list[str]:
    """The legal keys of a section."""
    model: type[BaseModel] = Config
    for section in (s for s in sections if not s.isdigit()):  # a number is a place in a list of sections
        annotation = model.model_fields[section].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
