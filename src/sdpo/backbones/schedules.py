"""Transitions on the timesteps and noise levels of a UNet pipeline's own scheduler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from sdpo.errors import UserError
from sdpo.method.denoisers import Consistency, Denoiser, Schedule, ScheduledDDIM
from sdpo.method.denoisers.ddim import trailing_schedule, trailing_timesteps
from sdpo.system.log import warn_once

EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
SCHEDULERS = ("DDIMScheduler", *EULER, "LCMScheduler")

_NEAR_NOISE = 0.9  # a first timestep from this part of all timesteps on is close enough to pure noise


def own_eta(scheduler: Any) -> float:
    """η of the steps of a UNet pipeline's own call: 1 where its scheduler draws fresh noise in each step, else 0."""
    return 1.0 if type(scheduler).__name__ in ("EulerAncestralDiscreteScheduler", "LCMScheduler") else 0.0


def unet_denoiser(scheduler: Any, num_steps: int, eta: float, device: torch.device, published: bool = True) -> Denoiser:
    """Build stochastic DDIM, or consistency sampling where the scheduler is an LCMScheduler.

    Args:
        scheduler: the pipeline's scheduler, of one of the classes `SCHEDULERS`; it is not changed.
        num_steps: number of sampling steps, T.
        eta: noise level η of the steps; 1 for an LCMScheduler.
        device: the device that the transitions are computed on.
        published: whether stochastic steps on trailing timesteps follow the published schedule, as in training; else
            every noise level is the scheduler's own.

    Raises:
        UserError: if the scheduler is of another class, thresholds its predictions, has no schedule of T steps, or has
            no transition with that η.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name not in SCHEDULERS:
        raise UserError(
            f"the model's scheduler is a {name}, whose steps have no Gaussian density given the latent before. Choose "
            f"one of {', '.join(SCHEDULERS)}, such as "
            "'model.scheduler={name: DDIMScheduler, timestep_spacing: trailing}'"
        )
    if getattr(config, "thresholding", False):
        raise UserError("the model's scheduler thresholds its predictions; set model.scheduler.thresholding=false")
    clip = config.clip_sample_range if getattr(config, "clip_sample", False) else None
    prediction = config.prediction_type
    try:
        trailing_timesteps(num_steps, config.num_train_timesteps)  # one message for all schedulers
        if name == "LCMScheduler":
            if eta != 1:
                raise ValueError(f"sample.eta is {eta:g}, but a consistency model draws fresh noise: use 1.0")
            own = _set(scheduler, num_steps)
            scaling = config.timestep_scaling
            return Consistency(scheduler.alphas_cumprod, own.timesteps, prediction, device, scaling, clip=clip)
        return ScheduledDDIM(ddim_schedule(scheduler, num_steps, published and eta > 0), prediction, eta, device, clip)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_start(scheduler: Any, timesteps: torch.Tensor, few_step: bool) -> None:
    """Refuse, or warn of, a schedule that hands pure noise to the network as a much less noisy latent.

    This is what leading timesteps do at few steps: a single one begins at timestep 1 of 1000. A few-step model was not
    trained for it; other models draw blurred images.

    Args:
        scheduler: the pipeline's scheduler.
        timesteps: the timesteps of the schedule, [T].
        few_step: whether a LoRA was fused that makes a few-step model of the pipeline, which is then refused.

    Raises:
        UserError: with the setting that puts this right.
    """
    first, total = float(timesteps[0]), scheduler.config.num_train_timesteps
    if first >= _NEAR_NOISE * total:
        return
    text = (
        f"the model's scheduler, with timestep_spacing={scheduler.config.get('timestep_spacing')}, begins "
        f"{len(timesteps)} {'step' if len(timesteps) == 1 else 'steps'} at timestep {first:g} of {total}, although the "
        "latents are pure noise: set model.scheduler.timestep_spacing=trailing, or use more steps (sample.num_steps, "
        "evaluate.steps)"
    )
    if few_step:
        raise UserError(f"model.fuse_lora: {text}")
    warn_once(text)


def replace_scheduler(pipeline: Any, settings: Mapping[str, Any]) -> None:
    """Replace a pipeline's scheduler by one with other settings, or of another class with the same noise levels.

    Predictions are clipped where the present scheduler or a setting says so. Diffusers would clip them to ±1 in a
    DDIMScheduler that replaces a scheduler without that setting, and so spoil every latent diffusion model.

    Args:
        pipeline: the diffusers pipeline, which is changed in place.
        settings: `name` of a diffusers scheduler class, by default the present one's, and settings of that class.

    Raises:
        UserError: if there is no such class or setting, or the class rejects the settings.
    """
    import diffusers

    present = pipeline.scheduler
    changes = {key: value for key, value in settings.items() if key != "name"}
    name = settings.get("name", type(present).__name__)
    family = getattr(diffusers, str(name), None)
    if family is None or not hasattr(family, "from_config") or not str(name).endswith("Scheduler"):
        raise UserError(
            f"model.scheduler.name: diffusers has no scheduler {name!r} (for UNets: {', '.join(SCHEDULERS)})"
        )
    known = set(inspect.signature(family.__init__).parameters) - {"self"}
    for key in changes:
        if key not in known:
            raise UserError(f"model.scheduler: {name} has no setting {key!r} (known: {', '.join(sorted(known))})")
    if "clip_sample" in known:
        changes = {"clip_sample": present.config.get("clip_sample", False), **changes}
    try:
        pipeline.scheduler = family.from_config(present.config, **changes)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"model.scheduler: {name} rejects these settings: {error}") from error


def ddim_schedule(scheduler: Any, num_steps: int, keeps_noise: bool) -> Schedule:
    """The DDIM schedule with a scheduler's own timesteps and noise levels.

    By default every ᾱ_prev is the scheduler's, and the last one is DDIM's `final_alpha_cumprod`, or 1 for Euler's
    σ = 0, so that the latents equal those of the pipeline's own call. Where the last step keeps noise, its ᾱ_prev is
    the one of timestep 0, which leaves it a variance and a density, and the image is the last step's x̂. On trailing
    timesteps this is the published schedule for every scheduler. Up to the noise, both choices give the same x̂ in every
    step, because x̂ does not depend on ᾱ_prev. A schedule that is not trailing may end at timestep 0: that step has no
    noise to keep and is left as it is.

    Euler schedulers use σ = √((1−ᾱ)/ᾱ) and begin at σ_max times the noise, which is √(1−ᾱ) in the scale of this
    package, slightly below 1. The ancestral Euler scheduler is DDIM with η = 1.

    Args:
        scheduler: a DDIM, Euler or ancestral Euler scheduler of diffusers; it is not changed.
        num_steps: number of sampling steps, T.
        keeps_noise: whether the last step keeps a variance, as stochastic steps do in training.
    """
    own = _set(scheduler, num_steps)
    table = scheduler.alphas_cumprod.double().cpu()
    timesteps, scale = own.timesteps[:num_steps].cpu(), 1.0
    if type(scheduler).__name__ in EULER:
        sigmas = own.sigmas.double().cpu()
        levels = 1 / (1 + sigmas.square())
        alpha, previous = levels[:num_steps], levels[1 : num_steps + 1]
        scale = float(own.init_noise_sigma / (1 + sigmas[0].square()).sqrt())
        if torch.equal(timesteps, timesteps.round()):
            timesteps = timesteps.long()
    else:
        before = timesteps - len(table) // num_steps
        alpha = table[timesteps]
        previous = torch.where(before >= 0, table[before.clamp(min=0)], own.final_alpha_cumprod.double())
    if not keeps_noise:
        return Schedule(timesteps, alpha, previous, scale)
    if torch.equal(timesteps, trailing_timesteps(num_steps, len(table))):
        published = trailing_schedule(table, num_steps)
        return Schedule(timesteps, published.alpha, published.alpha_previous, scale)
    kept = torch.where(timesteps > 0, previous.clamp(max=table[0]), previous)
    return Schedule(timesteps, alpha, kept, scale)


def _set(scheduler: Any, num_steps: int) -> Any:
    """Copy a scheduler and set the copy to T steps."""
    own = copy.deepcopy(scheduler)
    own.set_timesteps(num_steps)
    return own
