"""Assembles the parts of a run from its configuration: the one place where they are made and joined."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

<<<<<<< HEAD
from sdpo.assembly.callbacks import Callback, Callbacks
from sdpo.assembly.checks import check_density, check_processes
from sdpo.assembly.given import Given
from sdpo.assembly.micro_batches import choose_micro_batches, decode_batch
from sdpo.assembly.model import (
    compile_network,
    compute_dtype,
    encode_prompts,
    load_model,
    make_trainable,
    matrix_precision,
)
from sdpo.assembly.parts import ModelParts, Parts
from sdpo.assembly.rewards import load_rewards
from sdpo.assembly.update import first_step_is_shared, make_update
from sdpo.backbones import Backbone, PipelineBackbone
from sdpo.config import Config
from sdpo.config.named import build_named
from sdpo.distributed import launch
from sdpo.distributed.processes import Processes
from sdpo.distributed.shard import shard
from sdpo.evaluation.evaluator import Evaluator
from sdpo.loop.batches import Batches
from sdpo.loop.clock import Clock
from sdpo.loop.optimizer import Optimization
from sdpo.loop.policy import Policy
from sdpo.loop.reward_mix import RewardMix
=======
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
>>>>>>> models
from sdpo.method.denoisers import Denoiser
from sdpo.prompts import Prompt, load_prompts


<<<<<<< HEAD
def build_model(
    config: Config, processes: Processes, prompts: Iterable[str] = (), backbone: PipelineBackbone | None = None
) -> ModelParts:
    """Assemble the parts that draw images.
=======
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
>>>>>>> models

    Args:
        config: the configuration of a run, or a default one around a model.
        processes: the processes of this launch.
        prompts: the prompts that will be drawn; each is encoded once.
        backbone: a model that is loaded already, such as a tuned one; None loads `config.model`.

    Raises:
        UserError: if the model cannot be loaded.
    """
<<<<<<< HEAD
    device = processes.device
    backbone = load_model(config, device) if backbone is None else backbone
    policy = Policy(backbone, config.sample.guidance_scale, compute_dtype(config, device))
    embeddings = encode_prompts(config, backbone, prompts)
    return ModelParts(config, processes, backbone, policy, embeddings, decode_batch(config, backbone.image_size))


def build(
    config: Config,
    processes: Processes,
    *,
    given: Given | None = None,
    prompts: Sequence[Prompt] | None = None,
    with_rewards: bool = True,
    clock: Clock | None = None,
) -> Parts:
    """Assemble the parts of a training run.

    Args:
        config: the configuration of the run, which describes `given` already.
        processes: the processes of this launch, of which the caller lets sharded launches pass.
        given: the user's own pipeline and reward.
        prompts: the training prompts; None loads those of the configuration, with the unseen ones.
        with_rewards: load the rewards; without, the parts can sample and update, but not score.
        clock: counts the seconds of the phases; None counts those of the host.

    Raises:
        UserError: if a part cannot be made.
    """
    given = given or Given()
    sharding = _sharding(config, processes)
    whole = prompts is None
    train = load_prompts(config.prompts.train) if prompts is None else list(prompts)
    unseen = load_prompts(config.prompts.unseen) if whole and config.prompts.unseen is not None else []
    backbone = _trainable_backbone(config, processes, given, sharding)
    denoiser = training_schedule(config, backbone)
    names = [*config.rewards, *config.evaluate.observers] if with_rewards else []
    rewards = load_rewards(config, dict.fromkeys(names), processes.device, given.rewards)
    trained = {name: rewards[name] for name in config.rewards} if with_rewards else {}
    model = build_model(config, processes, [p.text for p in [*train, *unseen]], backbone)
    precision = partial(matrix_precision, config.model.tf32)
    with precision():
        compile_network(config, backbone, model.policy, denoiser, model.embeddings)
        micro_batches = choose_micro_batches(config, model.policy, denoiser, model.embeddings, processes)
    update = make_update(config, model.policy, denoiser.ends_random, processes, sharding)
    sample = config.sample
    return Parts(
        **{name: getattr(model, name) for name in ModelParts.__dataclass_fields__},
        prompts=train,
        denoiser=denoiser,
        algorithm=update.algorithm,
        batches=Batches(
            train, sample.prompts_per_epoch, config.train.batch_size, config.seed, processes.rank, processes.count
        ),
        mix=RewardMix(trained, config.rewards if with_rewards else {}),
        normalizer=config.build_normalizer(),
        update=update,
        evaluator=Evaluator(
            config.evaluate, config.epochs, train, unseen, rewards, _averaged_weights(update.optimization)
        ),
        micro_batches=micro_batches,
        share_first_step=first_step_is_shared(config, denoiser.ends_random),
        callbacks=Callbacks([build_named(value, {}, Callback, "callbacks") for value in config.callbacks]),
        clock=clock or Clock(),
        precision=precision,
    )


def training_schedule(config: Config, backbone: Backbone) -> Denoiser:
    """Make the schedule that is trained on; those of the evaluations are tried too, before anything takes time.
=======
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
>>>>>>> models

    Raises:
        UserError: if there is no such schedule, or nothing on it to learn from.
    """
    sample = config.sample
    denoiser = backbone.denoiser(sample.num_steps, sample.eta)
    for count in config.evaluate.steps:
        backbone.denoiser(count, sample.eta)
    check_density(config, bool(denoiser.stochastic.any()))
    return denoiser


def _sharding(config: Config, processes: Processes) -> launch.Sharding | None:
    """What the launch shards, checked; None where one process has everything."""
    asked = launch.requested(config.device)
    check_processes(config, processes.count)
    if asked is None or processes.count == 1:
        return None
    launch.check(asked, config, processes.device)
    return asked


def _trainable_backbone(
    config: Config, processes: Processes, given: Given, sharding: launch.Sharding | None
) -> PipelineBackbone:
    """Load the model, make its trained weights trainable, and shard it where the launch asks for that."""
    device = processes.device
    splits_weights = isinstance(sharding, launch.FSDP2)
    place = torch.device("cpu") if splits_weights else device
    backbone = load_model(config, device, given.pipeline, place)
    make_trainable(backbone, config, splits_weights)
    shard(backbone, sharding, device, compute_dtype(config, device), processes.count)
    return backbone


def _averaged_weights(optimization: Optimization) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Gives a context in which the network has the averaged weights, where the run keeps an average."""
    return optimization.ema.applied if optimization.ema is not None else contextlib.nullcontext
