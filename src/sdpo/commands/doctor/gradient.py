"""The check that gradients arrive where they are to, and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from sdpo.commands.doctor.finding import Finding
from sdpo.commands.doctor.model import Patient, modules
from sdpo.loop.policy import Policy
from sdpo.method import seeds
from sdpo.method.types import Trajectories

_UNUSED = 0.1  # of the trained parameters: some families have a few that nothing depends on, such as padding tokens


def gradients(patient: Patient, parts: list[Trajectories]) -> Iterator[Finding]:
    """The gradient of log-probabilities must reach every trained parameter, and no other.

    A fresh LoRA has B = 0, and so no gradient at A: parameters that are all 0 hold small noise while this looks.
    """
    backbone, part = patient.backbone, parts[0]
    trained = backbone.trainable_parameters()
    random = part.stochastic.nonzero().flatten().tolist()
    if not random:
        return
    sign = torch.ones(part.log_prob.shape[1], device=part.log_prob.device)
    sign[1::2] = -1  # as differences of branches have it
    with without_zeros(trained) as filled:
        try:
            for scale in _scales(patient.policy):
                for step in dict.fromkeys([random[0], random[-1]]):
                    (scale * (patient.log_prob(part, step) * sign).sum()).backward()
                reached = {n: p.grad for n, p in trained.items() if p.grad is not None}
                if all(g.isfinite().all() for g in reached.values()):
                    break
                _forget(trained)
            bad = [name for name, grad in reached.items() if not grad.isfinite().all()]
            dead = [name for name in trained if name not in reached or not reached[name].any()]
            ours = {id(parameter) for parameter in trained.values()}
            others = ((n, p) for m in modules(backbone) for n, p in m.named_parameters() if id(p) not in ours)
            stray = [name for name, p in others if p.requires_grad or p.grad is not None]
        finally:
            _forget(trained)
    count = f"{len(trained)} trained parameters"
    if stray or bad:
        text = (
            f"at {_some(stray)}, which is frozen" if stray else f"not finite at {_some(bad)}: try model.dtype=bfloat16"
        )
        yield Finding("gradient", "FAIL", text)
    elif len(dead) > _UNUSED * len(trained):
        text = (
            f"none at {len(dead)} of {count}, such as {_some(dead[:3])}: the network is detached from what is trained"
        )
        yield Finding("gradient", "FAIL", text)
    elif dead:
        text = f"none at {_some(dead)}, of {count}: the network's output does not depend on them. They do no harm, and"
        yield Finding("gradient", "WARN", f"{text} lora.targets can leave them out")
    else:
        note = f" ({filled} that begin at 0 held noise meanwhile)" if filled else ""
        yield Finding("gradient", "ok", f"reaches all {count} and no frozen one{note}")


def _scales(policy: Policy) -> tuple[float, ...]:
    """What the loss is multiplied by: float16 gradients of one log-probability underflow without, as in training."""
    half = policy.dtype == torch.float16
    return (2.0**16, 2.0**10, 1.0) if half else (1.0,)


def _forget(parameters: Mapping[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextlib.contextmanager
def without_zeros(parameters: Mapping[str, nn.Parameter]) -> Iterator[int]:
    """A context in which parameters that are all 0 hold small noise; afterwards they are what they were.

    Yields:
        How many these are.
    """
    zero = {name: p.data for name, p in parameters.items() if not p.data.any()}
    for name, kept in zero.items():
        noise = torch.randn(kept.shape, generator=seeds.generator("doctor", name))
        parameters[name].data = 0.01 * noise.to(kept)
    try:
        yield len(zero)
    finally:
        for name, kept in zero.items():
            parameters[name].data = kept
