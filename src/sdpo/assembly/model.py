"""The model of a run: loaded, or the user's own pipeline, and made ready to sample or to train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from sdpo.backbones import PipelineBackbone, load_backbone, origin, own_dtype, wrap_pipeline
from sdpo.config import Config
from sdpo.config.sections import NO_IMPORTS, ModelConfig
from sdpo.distributed.launch import loading_everywhere
from sdpo.errors import UserError, cause
from sdpo.loop.micro_batch_search import sampling_call, update_call
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.method.denoisers import Denoiser
from sdpo.run.directory import RunDirectory
from sdpo.system.dotted_path import IN_PYTHON
from sdpo.system.log import is_main_process, logger

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_EXAMPLE = 60  # characters of a prompt in a message


def with_own_dtype(config: Config, device: torch.device) -> Config:
    """The configuration with `model.dtype` in place of null: the family's own type on a GPU, float32 on a CPU.

    Raises:
        UserError: if the model cannot be found, or is of no supported class.
    """
    model = config.model
    if model.dtype is not None:
        return config
    dtype = "float32" if device.type == "cpu" else own_dtype(model.path, model.revision)
    return config.model_copy(update={"model": model.model_copy(update={"dtype": dtype})})


def with_own_guidance(config: Config, backbone: PipelineBackbone) -> Config:
    """The configuration with `sample.guidance_scale` in place of null: what the model's authors publish."""
    scale = backbone.guidance_scale(config.sample.guidance_scale)
    return config.model_copy(update={"sample": config.sample.model_copy(update={"guidance_scale": scale})})


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The type that the network computes in: `model.dtype`, but float32 where a CPU would have to run float16.

    Args:
        config: a configuration from `with_own_dtype`.
        device: the device that the network computes on.
    """
    dtype = config.model.dtype
    assert dtype is not None, "with_own_dtype comes first"
    return torch.float32 if dtype == "float16" and device.type == "cpu" else DTYPES[dtype]


def describe_pipeline(model: ModelConfig, pipeline: Any) -> dict[str, Any]:
    """Describe the user's own pipeline: the settings `path` and `dtype` of the section `model`.

    Raises:
        UserError: if its network has a precision that no run computes in.
    """
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    dtype = str(getattr(network, "dtype", torch.float32)).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UserError(f"the pipeline computes in {dtype}: load it in one of {', '.join(DTYPES)}")
    return {**model.model_dump(), "path": origin(pipeline) or IN_PYTHON, "dtype": dtype}


@loading_everywhere()
def load_model(
    config: Config, device: torch.device, pipeline: Any = None, place: torch.device | None = None
) -> PipelineBackbone:
    """Load the model, or wrap the user's own pipeline; it is ready to sample, and nothing is trainable yet.

    Args:
        config: the configuration of a run.
        device: the device that the model computes on.
        pipeline: the user's own pipeline, or None.
        place: the device on which the weights lie for now; None is `device`. A network that will be sharded need not
            fit on one device.

    Raises:
        UserError: if the model cannot be loaded, is of no supported class, or lacks the form of noise that
            `sample.noise_form` names.
    """
    config = with_own_dtype(config, device)
    model, dtype = config.model, compute_dtype(config, device)
    changes: dict[str, Any] = dict(
        size=(model.height, model.width),
        scheduler=model.scheduler,
        fuse_lora=model.fuse_lora.model_dump() if model.fuse_lora else None,
        noise_form=config.sample.noise_form,
    )
    if pipeline is not None:
        if dtype != DTYPES[str(model.dtype)]:
            pipeline.to(dtype=dtype)
        return wrap_pipeline(pipeline, place or device, **changes)
    if model.path == IN_PYTHON:
        raise UserError(
            "this run was given a pipeline in Python that does not say where it came from, or whose weights had been "
            "changed, as by fuse_lora: save the pipeline with pipeline.save_pretrained(FOLDER), and write the folder "
            "into the run's config.yaml as model.path"
        )
    return load_backbone(
        model.path, revision=model.revision, variant=model.variant, dtype=dtype, device=place or device, **changes
    )


def load_tuned(config: Config, run: RunDirectory, device: torch.device) -> PipelineBackbone:
    """Load a run's tuned model as anyone would: the base model with the LoRA, or the whole tuned pipeline.

    Raises:
        UserError: if the base model or the tuned weights cannot be loaded.
    """
    if config.lora is None:
        # The scheduler and the fused LoRA were saved with the weights.
        saved: dict[str, Any] = dict(path=str(run.model), revision="main", variant=None, scheduler=None, fuse_lora=None)
        data = config.model_dump(mode="json")
        return load_model(Config.parse({**data, "model": {**data["model"], **saved}}, NO_IMPORTS), device)
    backbone = load_model(config, device)
    backbone.load_lora(run.lora)
    return backbone


def make_trainable(backbone: PipelineBackbone, config: Config, device: torch.device, sharded: bool = False) -> None:
    """Make a LoRA, or all weights, trainable; initial LoRA weights come from the run's seed.

    Args:
        backbone: the model.
        config: the configuration of a run.
        device: the device that the model will compute on, to which a network that is quantised is moved.
        sharded: whether the network will be sharded; the copy of the base weights is then sharded too.
    """
    if config.train.gradient_checkpointing:
        backbone.checkpoint_activations()
    if config.lora is None:
        backbone.train_all(copy=not sharded)
        return
    if config.model.quantize is not None:
        backbone.quantize(config.model.quantize, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone.train_lora(config.lora.rank, config.lora.alpha, config.lora.targets, config.lora.path)
    if config.train.reference == "start" and config.lora.path is not None:
        if sharded:
            raise UserError(
                "train.reference=start keeps a copy of the starting LoRA, which a launch that shards the weights does "
                "not support: use train.reference=base, or launch without FSDP2"
            )
        backbone.refer_to_start()


def encode_prompts(config: Config, backbone: PipelineBackbone, prompts: Iterable[str]) -> PromptEmbeddings:
    """Encode each prompt once; then free the memory of the text encoders where `model.text_encoders` says so."""
    embeddings = PromptEmbeddings(backbone, prompts)
    if config.model.text_encoders != "keep":
        backbone.release_text_encoders(config.model.text_encoders)
    return embeddings


def warn_of_truncated(backbone: PipelineBackbone, prompts: Iterable[str]) -> None:
    """Say on the main process how many prompts the text encoders cut, with an example."""
    texts = list(dict.fromkeys(prompts))
    if not is_main_process() or not (cut := backbone.truncated(texts)):
        return
    logger.warning(
        "%d of %d prompts: longer than the model's text encoder reads (%d tokens, with those that the pipeline adds); "
        "what comes later has no effect on the images. The first is %r.",
        *(len(cut), len(texts), max(backbone.token_limits().values()), f"{cut[0][:_EXAMPLE]}…"),
    )


def compile_network(
    config: Config, backbone: PipelineBackbone, policy: Policy, denoiser: Denoiser, embeddings: PromptEmbeddings
) -> None:
    """Compile the network and try it, where `model.compile` asks for that; on a failure, warn and run it uncompiled."""
    if not config.model.compile:
        return
    prompt = embeddings.take(torch.zeros(1, dtype=torch.long, device=backbone.device))
    try:
        backbone.compile()
        for make in (sampling_call, update_call):
            make(policy, denoiser, prompt, config.build_algorithm().branches)(1)
    except Exception as error:  # a missing compiler, an unsupported operator: the compiler's own failures are many
        backbone.compile(undo=True)
        logger.warning("model.compile: %s; the run continues without it", cause(error))


@contextlib.contextmanager
def matrix_precision(tf32: bool) -> Iterator[None]:
    """A context in which float32 products on a GPU may use TF32; the former settings come back after it.

    Args:
        tf32: whether TF32 is used; without it, the context changes nothing.
    """
    if not tf32:
        yield
        return
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
