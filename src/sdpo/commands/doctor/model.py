"""Checks of the model: what is trained, sampling, log-probabilities, gradients, determinism."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdpo.assembly import build
from sdpo.backbones import PipelineBackbone
from sdpo.commands.doctor.finding import Finding
from sdpo.config.schema import Config
from sdpo.distributed.processes import Processes
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.rollout import rollout
from sdpo.method import gaussian
from sdpo.method.denoisers import Denoiser, Transition
from sdpo.method.types import Trajectories
from sdpo.prompts import Prompt

GROUPS = 2
_STEPS = 8  # at which log-ratios are looked at, spread over all
_ROUNDING = 1e-6  # of a log-ratio on policy
_CLIP = 1e-4  # from here on the published clip range acts before anything was learned


@dataclass(frozen=True)
class Patient:
    """The parts of a run, built as training builds them."""

    config: Config
    backbone: PipelineBackbone
    policy: Policy
    denoiser: Denoiser
    embeddings: PromptEmbeddings
    prompts: list[Prompt]

    @classmethod
    def admit(cls, config: Config, prompts: list[Prompt], device: torch.device) -> Patient:
        """Load the model and make trainable what is to be trained.

        Raises:
            UserError: if it cannot be loaded.
        """
        backbone = build.build_backbone(config, device)
        denoiser = build.build_denoiser(config, backbone)
        build.prepare_training(backbone, config)
        policy = Policy(backbone, config.sample.guidance_scale, build.compute_dtype(config, device))
        chosen = [prompts[i % len(prompts)] for i in range(GROUPS)]
        embeddings = build.encode_prompts(config, backbone, [p.text for p in chosen])
        return cls(config, backbone, policy, denoiser, embeddings, chosen)

    def sample(self) -> list[Trajectories]:
        """A few groups as the first epoch would draw them, one a part."""
        return list(
            rollout(
                self.policy,
                self.denoiser,
                self.embeddings,
                self.prompts,
                range(GROUPS),
                seed=self.config.seed,
                epoch=1,
                branches=self.config.build_algorithm().branches,
                micro_batch=1,
                shared_noise=self.config.sample.shared_noise,
                share_first_step=build.shares_first_step(self.config, self.denoiser.ends_random),
            )
        )

    def transition(self, part: Trajectories, step: int, groups: int = 1) -> Transition:
        """The policy's transition at a step of a group's trajectories, in a call of that many groups like it."""
        branches = part.log_prob.shape[1]
        shared = part.shared_first_step and step == 0
        x = (part.states[0, :1, step] if shared else part.states[0, :, step]).repeat(groups, 1, 1, 1)
        conditioning = self.embeddings(part.prompts * len(x))
        index = torch.full((len(x),), step, device=x.device)
        found = self.policy.transition(self.denoiser, x, index, conditioning)
        chosen = torch.arange(branches, device=x.device)
        return found[torch.zeros_like(chosen) if shared else chosen]

    def log_prob(self, part: Trajectories, step: int, groups: int = 1) -> Tensor:
        """Under the current policy, of the step that a group's K trajectories took; [K]. See `transition`."""
        transition = self.transition(part, step, groups)
        return gaussian.log_prob(part.states[0, :, step + 1], transition.mean, transition.std)

    def micro_batches(self) -> build.MicroBatches:
        """Those of the run where their rounding shows; in float32 and where `auto` makes them equal, of one group."""
        settings = self.config.sample.micro_batch, self.config.train.micro_batch
        if self.policy.dtype == torch.float32 or settings == ("auto", "auto"):
            return build.MicroBatches(1, 1)
        processes = Processes(self.config.device)
        return build.micro_batches(self.config, self.policy, self.denoiser, self.embeddings, processes)


def precision(patient: Patient) -> Iterator[Finding]:
    """What is trained, on what, and in which precision."""
    trained = patient.backbone.trainable_parameters()
    wrong = [name for name, p in trained.items() if p.dtype != torch.float32]
    count = sum(p.numel() for p in trained.values())
    total = sum(p.numel() for p in patient.backbone.network_module.parameters())
    device, wanted, used = patient.backbone.device, patient.config.model.dtype, patient.policy.dtype
    text = (
        f"{count:,} of {total:,} parameters of the network are trained, in float32; it computes in {used} on {device}"
    )
    if wrong or not trained:
        what = f"{wrong[0]} and {len(wrong) - 1} more are not float32" if wrong else "nothing is trained"
        yield Finding("precision", "FAIL", f"{what}; lora.targets or the model's own dtype is the cause")
    elif used != build.DTYPES[wanted]:
        yield Finding("precision", "WARN", f"{text}: {wanted} is for GPUs. A run elsewhere will differ in rounding")
    elif used == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        yield Finding("precision", "WARN", f"{text}, which this GPU only emulates: use model.dtype=float16")
    else:
        yield Finding("precision", "ok", text)


def weight_bytes(backbone: PipelineBackbone) -> int:
    """Of all parts of the pipeline."""
    parts = {id(p): p for module in modules(backbone) for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in parts.values())


def modules(backbone: PipelineBackbone) -> list[nn.Module]:
    """The network, and the frozen parts beside it where the backbone holds a pipeline."""
    components: Mapping[str, object] = getattr(getattr(backbone, "pipeline", None), "components", {})
    return [backbone.network_module, *(part for part in components.values() if isinstance(part, nn.Module))]


def log_probabilities(patient: Patient, parts: list[Trajectories]) -> Iterator[Finding]:
    """Finite where a step is random; and some step must be."""
    random = parts[0].stochastic
    values = torch.cat([part.log_prob for part in parts])  # [B, K, T]
    bad = [i for i in range(values.shape[2]) if not values[..., i].isfinite().all()]
    latents = [i for i in range(values.shape[2]) if not all(p.states[:, :, i + 1].isfinite().all() for p in parts)]
    if bad or latents:
        what, steps = ("log-probability", bad) if bad and not latents else ("latent", latents)
        text = f"{what} not finite at step {', '.join(map(str, steps[:8]))} of {values.shape[2]}"
        yield Finding("log-prob", "FAIL", f"{text}: use model.dtype=bfloat16 or float32, and look at the weights")
    elif not random.any():
        yield Finding("log-prob", "FAIL", "no step is random, so nothing has a log-probability: raise sample.eta")
    else:
        low, high = values[..., random].min().item(), values[..., random].max().item()
        count = int(random.sum())
        text = f"finite at all {values.shape[2]} steps, {low:.3g} … {high:.3g}; {count} of them random"
        yield Finding("log-prob", "ok", text)


def log_ratio(patient: Patient, parts: list[Trajectories]) -> Iterator[Finding]:
    """Before the first update the policy is the one that sampled: the log-ratio must be 0, up to rounding."""
    steps = parts[0].num_steps
    chosen = sorted({round(i * (steps - 1) / max(1, min(steps, _STEPS) - 1)) for i in range(min(steps, _STEPS))})
    worst, where, calls = 0.0, 0, patient.micro_batches()
    unequal = calls.sample != calls.update
    for step in chosen:
        deviations = patient.log_prob(parts[0], step).detach() - parts[0].log_prob[0, :, step]
        if unequal:
            with torch.no_grad():
                sampled = patient.log_prob(parts[0], step, calls.sample)
            updated = patient.log_prob(parts[0], step, calls.update).detach()
            deviations = torch.cat([deviations, updated - sampled])
        deviation = deviations.abs().max().item()
        if not deviation <= worst:
            worst, where = deviation, step
    text = f"at most {worst:.1e} on policy, at {len(chosen)} of {steps} steps"
    if worst <= _ROUNDING:
        yield Finding("log-ratio", "ok", text)
    elif unequal:
        text = f"{text} (step {where}): make sample.micro_batch (now {calls.sample}) and train.micro_batch (now"
        text = f"{text} {calls.update}) equal, as {patient.policy.dtype} rounds differently in calls of other sizes"
        yield Finding("log-ratio", "WARN" if worst <= _CLIP else "FAIL", text)
    elif worst <= _CLIP:
        yield Finding("log-ratio", "WARN", f"{text} (step {where}): rounding differs; try model.dtype=float32")
    else:
        text = f"{text} (step {where}): sampling and update do not compute the same. The network keeps a state or"
        yield Finding(
            "log-ratio", "FAIL", f"{text} draws random numbers (dropout?), or {patient.policy.dtype} is too coarse"
        )


def determinism(patient: Patient, parts: list[Trajectories]) -> Iterator[Finding]:
    """The same seed must draw the same latents."""
    again = patient.sample()
    pairs = list(zip(parts, again, strict=True))
    if all(torch.equal(a.states, b.states) and torch.equal(a.log_prob, b.log_prob) for a, b in pairs):
        yield Finding("determinism", "ok", "the same seed drew the same latents twice, bit for bit")
        return
    apart = max((a.states.float() - b.states.float()).abs().max().item() for a, b in pairs)
    yield Finding(
        "determinism",
        "WARN" if apart < 1e-3 else "FAIL",
        f"the same seed drew latents {apart:.1e} apart: a run will not be repeatable bit for bit. "
        "torch.use_deterministic_algorithms, or model.compile=false and model.tf32=false",
    )


def images(patient: Patient, parts: list[Trajectories]) -> tuple[Tensor | None, Finding]:
    """The last step's images, [N, 3, H, W], unless they cannot be used."""
    decoded = []
    for part in parts:
        assert part.x0 is not None, "parts are as they were sampled"
        decoded.append(patient.backbone.decode(part.x0[:, :, -1].flatten(0, 1)))
    found = torch.cat(decoded)
    size = f"{found.shape[-1]} × {found.shape[-2]}"
    if not found.isfinite().all() or found.amin() < 0 or found.amax() > 1:
        text = f"{size}, not finite or outside 0 … 1: the decoder overflows; use model.dtype=bfloat16 or float32"
        return None, Finding("images", "FAIL", text)
    if (found.amax((1, 2, 3)) - found.amin((1, 2, 3)) < 1 / 255).any():
        return found, Finding("images", "WARN", f"{size}, some of one colour alone: is the decoder's dtype too coarse?")
    return found, Finding("images", "ok", f"{size}, {len(found)} of {GROUPS} prompts, finite and within 0 … 1")
