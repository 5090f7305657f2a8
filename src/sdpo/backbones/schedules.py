"""From a UNet pipeline's own scheduler to the transitions along its timesteps."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from sdpo.errors import UserError
from sdpo.method.denoisers import Consistency, Denoiser, Schedule, ScheduledDDIM
from sdpo.method.denoisers.ddim import trailing_schedule, trailing_timesteps

EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
SCHEDULERS = ("DDIMScheduler", *EULER, "LCMScheduler")


def unet_denoiser(scheduler: Any, num_steps: int, eta: float, device: torch.device) -> Denoiser:
    """Stochastic DDIM, or consistency sampling where the scheduler is of latent consistency models.

    Raises:
        UserError: if the scheduler is of another kind, or cannot give that many steps, or has no transition of that η.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name not in SCHEDULERS:
        raise UserError(
            f"the model's scheduler is a {name}, whose steps are no Gaussians around the latent before. Choose one of "
            f"{', '.join(SCHEDULERS)}, such as 'model.scheduler={{name: DDIMScheduler, timestep_spacing: trailing}}'"
        )
    if getattr(config, "thresholding", False):
        raise UserError("the model's scheduler thresholds its predictions; set model.scheduler.thresholding=false")
    clip = config.clip_sample_range if getattr(config, "clip_sample", False) else None
    prediction = config.prediction_type
    try:
        trailing_timesteps(num_steps, config.num_train_timesteps)  # refuses what no schedule can give, in one wording
        if name == "LCMScheduler":
            if eta != 1:
                raise ValueError(f"sample.eta is {eta:g}, but a consistency model draws its noise anew: use 1.0")
            own = _set(scheduler, num_steps)
            scaling = config.timestep_scaling
            return Consistency(scheduler.alphas_cumprod, own.timesteps, prediction, device, scaling, clip=clip)
        return ScheduledDDIM(ddim_schedule(scheduler, num_steps, eta), prediction, eta, device, clip)
    except ValueError as error:
        raise UserError(str(error)) from error


def replace_scheduler(pipeline: Any, settings: Mapping[str, Any]) -> None:
    """Give a pipeline a scheduler with some other settings, or of another class on the same noise levels.

    Args:
        pipeline: it is changed.
        settings: `name` of a diffusers class, by default the present one's, and what that class can be set to.

    Raises:
        UserError: if there is no such class or setting.
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
    try:
        pipeline.scheduler = family.from_config(present.config, **changes)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"model.scheduler: {name} cannot be set up like that: {error}") from error


def ddim_schedule(scheduler: Any, num_steps: int, eta: float) -> Schedule:
    """The scheduler's own timesteps and noise levels.

    With η = 0 every ᾱ_prev is the scheduler's: the last one that of DDIM's `final_alpha_cumprod`, or 1 for Euler's
    σ = 0, so that our latents are those of the pipeline's own call. With η > 0 the last ᾱ_prev is that of timestep 0,
    which leaves the step a variance and a density, and the image is its x̂; on trailing timesteps this is the published
    schedule, whatever the scheduler. Both agree in x̂ of every step up to the noise, as x̂ does not depend on ᾱ_prev.
    A schedule that is not trailing may end at timestep 0 itself: that step has no noise to keep, and stays as it is.

    Euler schedulers count in σ = √((1−ᾱ)/ᾱ) and begin at σ_max times the noise, which is √(1−ᾱ) in our scale and not
    quite 1; the ancestral one is DDIM with η = 1.
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
    if eta == 0:
        return Schedule(timesteps, alpha, previous, scale)
    if torch.equal(timesteps, trailing_timesteps(num_steps, len(table))):
        published = trailing_schedule(table, num_steps)
        return Schedule(timesteps, published.alpha, published.alpha_previous, scale)
    kept = torch.where(timesteps > 0, previous.clamp(max=table[0]), previous)
    return Schedule(timesteps, alpha, kept, scale)


def _set(scheduler: Any, num_steps: int) -> Any:
    """A copy of the scheduler, set to T steps; the pipeline's own stays as it is."""
    own = copy.deepcopy(scheduler)
    own.set_timesteps(num_steps)
    return own
