"""From a configuration to the parts of a run."""

from __future__ import annotations

import json
import math
import os
import platform
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sdpo.backbones import Backbone, PipelineBackbone, load_backbone, wrap_pipeline
from sdpo.config.schema import Config, ModelConfig, TrainConfig
from sdpo.distributed.launch import Sharding, loading_everywhere
from sdpo.distributed.processes import Processes, check_device
from sdpo.distributed.shard import make_optimization
from sdpo.errors import UserError
from sdpo.estimate.model_sizes import peek
from sdpo.evaluation.stopping import check_rules
from sdpo.loop.micro_batch import common, default_samples, even, sampling_call, search, update_call
from sdpo.loop.optimizer import alone, warmup_decay
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.policy_update import Updater, UpdateSettings
from sdpo.method.advantages import GroupNormalizer, Normalizer, PairNormalizer, StepwiseNormalizer
from sdpo.method.algorithms import Algorithm
from sdpo.method.denoisers import Denoiser
from sdpo.prompts import load_prompts
from sdpo.rewards import PlacedReward, Reward, check_reward_name, load_reward
from sdpo.system.durable import write_whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """What the network computes in: `model.dtype`, but float32 where a CPU would have to run float16."""
    if config.model.dtype == "float16" and device.type == "cpu":
        return torch.float32
    return DTYPES[config.model.dtype]


IN_PYTHON = "(in Python)"
"""`model.path` of a run whose pipeline does not say where it came from."""


def describe_pipeline(model: ModelConfig, pipeline: Any) -> ModelConfig:
    """The model section of a run on the user's own pipeline: where that came from, and its precision.

    Raises:
        UserError: if its network is in a precision that no run computes in.
    """
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    dtype = str(getattr(network, "dtype", torch.float32)).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UserError(f"the pipeline computes in {dtype}: load it in one of {', '.join(DTYPES)}")
    origin = getattr(pipeline, "name_or_path", None) or IN_PYTHON
    return model.model_copy(update={"path": str(origin), "dtype": dtype})


@loading_everywhere()
def build_backbone(
    config: Config, device: torch.device, pipeline: Any = None, place: torch.device | None = None
) -> PipelineBackbone:
    """The model, or the user's own pipeline, ready to sample; nothing is trainable yet.

    Args:
        config: which model.
        device: that it computes on.
        pipeline: the user's own.
        place: where it lies for now, if not there: a network that will be spread need not fit on one device.

    Raises:
        UserError: if it cannot be loaded, is of no supported class, or has no noise of the form that is asked for.
    """
    return _load(config, compute_dtype(config, device), place or device, pipeline)


def _load(config: Config, dtype: torch.dtype, device: torch.device, pipeline: Any) -> PipelineBackbone:
    model = config.model
    changes: dict[str, Any] = dict(
        size=(model.height, model.width),
        scheduler=model.scheduler,
        fuse_lora=model.fuse_lora.model_dump() if model.fuse_lora else None,
        noise_form=config.sample.noise_form,
    )
    if pipeline is not None:
        if dtype != DTYPES[model.dtype]:
            pipeline.to(dtype=dtype)
        return wrap_pipeline(pipeline, device, **changes)
    if model.path == IN_PYTHON:
        raise UserError(
            "this run was given a pipeline in Python that does not say where it came from: save it by "
            "pipeline.save_pretrained(FOLDER) and write the folder into the run's config.yaml, as model.path"
        )
    return load_backbone(
        model.path,
        revision=model.revision,
        variant=model.variant,
        dtype=dtype,
        device=device,
        **changes,
    )


def check_references(config: Config) -> None:
    """What a configuration names and a dry run can look for without loading it: rewards, prompts, a local model.

    Raises:
        UserError: if something is not there, or the model's only step has nothing to learn from.
    """
    for name in [*config.rewards, *config.evaluate.observers]:
        check_reward_name(name)
    check_rules(config)
    for source in (config.prompts.train, config.prompts.unseen):
        if source is not None:
            load_prompts(source)
    _check_density(config, _ends_random(config) or config.sample.num_steps > 1)


@loading_everywhere()
def load_rewards(
    config: Config, names: Iterable[str], device: torch.device, own: Mapping[str, Reward] | None = None
) -> dict[str, PlacedReward]:
    """Rewards by name, each in calls of `scoring.batch_size` on `scoring.device`.

    Args:
        config: its `scoring` and `reward_options`.
        names: to load.
        device: of the denoising network; `scoring.device` auto.
        own: the user's own callables, which are not loaded.

    Raises:
        UserError: if one cannot be loaded.
    """
    scoring = config.scoring
    place = check_device(scoring.device, "scoring.device") or device
    start = "cpu" if scoring.offload else str(place)
    placed: dict[str, PlacedReward] = {}
    for name in names:
        reward = (own or {}).get(name) or load_reward(name, start, config.reward_options.get(name))
        placed[name] = PlacedReward(name, reward, scoring.batch_size, place, scoring.offload, scoring.timeout)
    return placed


def prepare_training(backbone: PipelineBackbone, config: Config, sharded: bool = False) -> None:
    """Make the LoRA, or all weights, trainable; initial LoRA weights come from the run's seed.

    Args:
        backbone: whose.
        config: which.
        sharded: whether the network will be spread, and what it was is kept in parts too.
    """
    if config.train.gradient_checkpointing:
        backbone.checkpoint_activations()
    if config.lora is None:
        backbone.train_all(copy=not sharded)
        return
    if config.model.quantize is not None:
        backbone.quantize(config.model.quantize)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone.train_lora(config.lora.rank, config.lora.alpha, config.lora.targets, config.lora.path)


def encode_prompts(config: Config, backbone: PipelineBackbone, prompts: Iterable[str]) -> PromptEmbeddings:
    """The run's prompts, each encoded once; then the text encoders make room where `model.text_encoders` says so."""
    embeddings = PromptEmbeddings(backbone, prompts)
    if config.model.text_encoders != "keep":
        backbone.release_text_encoders(config.model.text_encoders)
    return embeddings


def build_denoiser(config: Config, backbone: Backbone) -> Denoiser:
    """The schedule that is trained on; those of the evaluation are tried too, before anything takes time.

    Raises:
        UserError: if there is no such schedule, or nothing on it to learn from.
    """
    sample = config.sample
    denoiser = backbone.denoiser(sample.num_steps, sample.eta)
    for count in config.evaluate.steps:
        backbone.denoiser(count, sample.eta)
    _check_density(config, bool(denoiser.stochastic.any()))
    return denoiser


def _check_density(config: Config, has_density: bool) -> None:
    if config.build_algorithm().needs_log_prob and not has_density:
        raise UserError(
            f"sample.num_steps is {config.sample.num_steps}, whose only step is deterministic on this model's schedule "
            "and has no log-probability to learn from: use sample.num_steps=2 or more"
        )


def compile_network(
    config: Config, backbone: PipelineBackbone, policy: Policy, denoiser: Denoiser, embeddings: PromptEmbeddings
) -> None:
    """Compile, where `model.compile` asks for it, and try it: where it fails, a warning says so and nothing is lost."""
    if config.model.tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    if not config.model.compile:
        return
    prompt = embeddings.take(torch.zeros(1, dtype=torch.long, device=backbone.device))
    try:
        backbone.compile()
        for make in (sampling_call, update_call):
            make(policy, denoiser, prompt, config.build_algorithm().branches)(1)
    except Exception as error:  # a missing compiler, an unsupported operator: the compiler's own failures are many
        backbone.compile(undo=True)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(f"model.compile: {reason}; going on without", stacklevel=2)


def build_normalizer(config: Config) -> Normalizer:
    """The advantage normaliser."""
    advantage = config.advantage
    if advantage.normalizer == "pair":
        return PairNormalizer()
    if advantage.normalizer == "group":
        return GroupNormalizer()
    return StepwiseNormalizer(advantage.buffer_size, advantage.min_count, per_step=advantage.normalizer == "stepwise")


def build_optimizer(parameters: Iterable[torch.nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, or its 8-bit form.

    Raises:
        UserError: if the 8-bit form is not installed.
    """
    settings: dict[str, Any] = dict(
        lr=train.learning_rate, betas=tuple(train.betas), weight_decay=train.weight_decay, eps=train.epsilon
    )
    if train.optimizer == "adamw8bit":
        try:
            import bitsandbytes
        except ImportError as error:
            raise UserError("train.optimizer=adamw8bit needs bitsandbytes: pip install 'sdpo[bitsandbytes]'") from error
        return bitsandbytes.optim.AdamW8bit(parameters, **settings)  # type: ignore[no-any-return]
    return torch.optim.AdamW(parameters, fused=True, **settings)


def update_settings(
    config: Config, processes: int = 1, micro_batch: int = 1, ends_random: bool = True
) -> UpdateSettings:
    """What the update of one process needs of the configuration; a last step without density is never visited."""
    train, algorithm = config.train, config.build_algorithm()
    return UpdateSettings(
        batch_size=train.batch_size // processes,
        micro_batch=micro_batch,
        inner_epochs=train.inner_epochs,
        timestep_fraction=train.timestep_fraction,
        kl_weight=train.kl_weight,
        seed=config.seed,
        step_shuffle=train.step_shuffle,
        first_steps=train.first_steps,
        last_step=ends_random and algorithm.credit == "step",
        unit=algorithm.unit,
        skip_nonfinite=train.on_nonfinite == "skip",
    )


def _ends_random(config: Config) -> bool:
    """Whether the last step has a density, as far as that is known before the model is loaded."""
    return peek(config.model.path).ends_random(config.model.scheduler)


def shares_first_step(config: Config, ends_random: bool) -> bool:
    """Whether branches, which begin at one latent, share the network evaluation of the first step.

    `auto` shares where the update visits no other step: its network calls then have the same batches as those of
    sampling, so that the log-ratio before the first update stays exactly 0.
    """
    setting = config.sample.share_first_step
    if setting != "auto":
        return setting
    only_first = update_settings(config, ends_random=ends_random).eligible_steps(config.sample.num_steps) == 1
    return config.sample.shared_noise and only_first


def build_updater(
    config: Config,
    policy: Policy,
    denoiser: Denoiser,
    algorithm: Algorithm[Any],
    processes: Processes,
    micro_batch: int,
    sharding: Sharding | None = None,
) -> Updater:
    """The update with its optimizer, schedule and average.

    Raises:
        UserError: see `build_optimizer`.
    """
    train, sample = config.train, config.sample
    settings = update_settings(config, processes.count, micro_batch, denoiser.ends_random)
    steps = config.epochs * settings.optimizer_steps(sample.prompts_per_epoch // processes.count, sample.num_steps)

    def make(tensors: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = build_optimizer(tensors, train)
        return optimizer, LambdaLR(optimizer, warmup_decay(train.lr_schedule, train.warmup_steps, steps))

    options: dict[str, Any] = dict(
        max_grad_norm=train.max_grad_norm,
        ema_decay=train.ema_decay,
        all_reduce=processes.mean if processes.count > 1 else alone,
        scaled=policy.dtype == torch.float16 and policy.backbone.device.type == "cuda",
    )
    parameters = policy.backbone.trainable_parameters()
    optimization = make_optimization(sharding, policy.backbone, processes, parameters, make, **options)
    return Updater(policy, algorithm, settings, optimization)


def optimizer_steps(config: Config) -> int:
    """Of an epoch, as far as that is known before the model is loaded."""
    settings = update_settings(config, ends_random=_ends_random(config))
    return settings.optimizer_steps(config.sample.prompts_per_epoch, config.sample.num_steps)


def cost(config: Config) -> str:
    """What a run will cost, in two lines that YAML takes for comments; `check_references` comes before."""
    sample, algorithm = config.sample, config.build_algorithm()
    known, ends_random = peek(config.model.path), _ends_random(config)
    settings = update_settings(config, ends_random=ends_random)
    trajectories = sample.prompts_per_epoch * algorithm.branches
    queries = {"final": 1, "all": sample.num_steps}.get(algorithm.reward_plan, min(3, sample.num_steps))
    updates = optimizer_steps(config)
    guidance = 2 if sample.guidance_scale != 1 and not known.embeds_guidance else 1
    # What one evaluation or query a group spares at the first step, which all its branches have in common.
    shared = trajectories - sample.prompts_per_epoch if shares_first_step(config, ends_random) else 0
    first_is_asked_for = algorithm.reward_plan != "final" or sample.num_steps == 1
    queries = queries * trajectories - (shared if first_is_asked_for else 0)
    forward = (trajectories * sample.num_steps - shared) * guidance
    visited, eligible = settings.visited_steps(sample.num_steps), settings.eligible_steps(sample.num_steps)
    backward = (trajectories * visited - round(shared * visited / eligible)) * settings.inner_epochs * guidance
    forward += backward if settings.kl_weight > 0 or algorithm.needs_reference else 0  # of the base model
    forward += backward if algorithm.unit == "trajectory" else 0  # of all steps, before the first gradient
    return (
        f"# an epoch: {trajectories} trajectories, at most {queries} reward queries, "
        f"{forward} network evaluations without and {backward} with gradient, {updates} optimizer steps\n"
        f"# the run: {config.epochs} epochs, {config.epochs * trajectories} trajectories, "
        f"{config.epochs * (forward + backward)} network evaluations, {config.epochs * updates} optimizer steps"
    )


@dataclass(frozen=True)
class MicroBatches:
    """Groups in a network call.

    Attributes:
        sample: of the rollout.
        update: of the update.
    """

    sample: int
    update: int


def micro_batches(
    config: Config, policy: Policy, denoiser: Denoiser, embeddings: PromptEmbeddings, processes: Processes
) -> MicroBatches:
    """The settings, `auto` resolved: tried out on a GPU, else by the size of the latents; on all processes alike.

    A network that is spread over processes is not tried: when one process runs out of memory, the others wait for ever.

    Below float32, sampling and update get the same micro-batch: kernels that differ with the batch size round
    differently, which moves a step's log-probability by more than the clip range (the last step's by 4e-3 and more in
    bfloat16). In equal batches the log-ratio before the first update is exactly 0.
    """
    branches, device = config.build_algorithm().branches, policy.backbone.device
    shares = {
        "sample": config.sample.prompts_per_epoch // processes.count,
        "update": config.train.batch_size // processes.count,
    }
    calls = {"sample": sampling_call, "update": update_call}
    chosen: dict[str, int] = {}
    for name, setting in (("sample", config.sample.micro_batch), ("update", config.train.micro_batch)):
        if setting != "auto":
            chosen[name] = min(setting, shares[name])
        elif device.type == "cuda" and not policy.backbone.is_sharded:
            prompt = embeddings.take(torch.zeros(1, dtype=torch.long, device=device))
            found = search(calls[name](policy, denoiser, prompt, branches), shares[name], device)
            chosen[name] = even(shares[name], found)
        else:
            samples = default_samples(math.prod(policy.backbone.latent_shape), device)
            chosen[name] = even(shares[name], max(1, samples // branches))
    if policy.dtype != torch.float32:
        if config.sample.micro_batch == config.train.micro_batch == "auto":
            chosen = dict.fromkeys(chosen, common(shares.values(), min(chosen.values())))
        elif chosen["sample"] != chosen["update"]:
            warnings.warn(
                f"sample.micro_batch ({chosen['sample']}) and train.micro_batch ({chosen['update']}) differ: in "
                f"{config.model.dtype} the log-ratio is then not 0 before the first update, by more than a narrow "
                "algorithm.clip_range; make them equal",
                stacklevel=2,
            )
    return MicroBatches(**processes.broadcast(chosen))


def decode_batch(config: Config, backbone: PipelineBackbone) -> int:
    """Images in a decoder call; `auto` is 8 of 512², whose decoding already fills a GPU, and 32 of small ones."""
    return decode_batch_of(config, backbone.image_size)


def decode_batch_of(config: Config, image_size: tuple[int, int]) -> int:
    """See `decode_batch`; of a height and width in pixels."""
    setting = config.scoring.decode_batch
    return max(1, min(32, 2**21 // math.prod(image_size))) if setting == "auto" else setting


def check_processes(config: Config, processes: int) -> None:
    """Refuse batches that do not divide over the processes.

    Raises:
        UserError: with legal numbers.
    """
    batch = config.train.batch_size
    if batch % processes:
        legal = max(1, round(batch / processes)) * processes
        prompts = max(1, round(config.sample.prompts_per_epoch / legal)) * legal
        raise UserError(
            f"train.batch_size ({batch}) must be a multiple of the {processes} processes: "
            f"use train.batch_size={legal} with sample.prompts_per_epoch={prompts}"
        )


def prepare_run_dir(config: Config, default: str, create: bool = True) -> Path:
    """The run's directory, created unless another process does it.

    Raises:
        UserError: if it cannot be one.
    """
    path = Path(config.output_dir or default)
    if os.path.isfile(path):
        raise UserError(f"--output-dir {path} is a file: name a new or existing directory")
    try:
        if create:
            path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UserError(f"--output-dir {path} cannot be created: {error}") from error
    return path


FORMAT = 1
"""Of a run's directory: goes up when an older version could no longer go on with it."""


def check_format(run_dir: Path) -> None:
    """Refuse the directory of a run that a newer version made.

    Raises:
        UserError: with both numbers.
    """
    try:
        record = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))
        found = record["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # a new run, or one whose environment nobody knows: the configuration and the checksums decide
    if isinstance(found, int) and found > FORMAT:
        raise UserError(
            f"{run_dir} was made by sdpo {record.get('sdpo')}, whose runs have format {found}; this is sdpo "
            f"{version('sdpo')}, which knows formats up to {FORMAT}: upgrade it, or name another directory."
        )


def write_environment(path: Path, device: torch.device, processes: int) -> None:
    """What the run ran on."""
    packages = ("sdpo", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pydantic")
    record: dict[str, Any] = {
        "format": FORMAT,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
    }
    for name in packages:
        try:
            record[name] = version(name)
        except PackageNotFoundError:
            record[name] = "not installed"
    write_whole(path, json.dumps(record, indent=2) + "\n")


def batch_arithmetic(config: Config, processes: int) -> str:
    """How the batches of an epoch come about, in a line that YAML takes for a comment.

    Raises:
        UserError: if they do not divide over the processes, with numbers that do.
    """
    check_processes(config, processes)
    sample, train = config.sample, config.train
    share = train.batch_size // processes
    steps = optimizer_steps(config)
    if train.micro_batch == "auto":
        calls = "in micro-batches that are found when training starts"
    else:
        micro = min(train.micro_batch, share)
        calls = f"in micro-batches of {micro} (gradients gathered over {-(-share // micro)} calls)"
    return (
        f"# batches: {sample.prompts_per_epoch} groups an epoch = {sample.prompts_per_epoch // train.batch_size} × "
        f"{train.batch_size}; {train.batch_size} a step over {processes} process{'es' * (processes > 1)} = {share} "
        f"each, {calls}; {steps} optimizer steps an epoch"
    )


def memory_knobs(config: Config, now: MicroBatches | None = None) -> str:
    """What to turn when memory runs out, from the cheapest on; `now` are the micro-batches that `auto` found."""
    scoring = config.scoring
    update, sample = (now.update, now.sample) if now else (config.train.micro_batch, config.sample.micro_batch)
    return (
        f"None of these changes the result (below float32 the first two must be equal): train.micro_batch (now "
        f"{update}), sample.micro_batch (now {sample}), train.gradient_checkpointing=true, scoring.decode_batch (now "
        f"{scoring.decode_batch}), scoring.batch_size (now {scoring.batch_size}), scoring.offload=true, "
        "model.text_encoders=cpu. These do: model.dtype=bfloat16, model.quantize=int8 or nf4, "
        "train.optimizer=adamw8bit, a smaller lora.rank, model.height and model.width."
    )
