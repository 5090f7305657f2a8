"""The check that gradients reach every trained parameter, and no other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sdpo.commands.doctor.finding import Finding
from sdpo.commands.doctor.probe import Probe
from sdpo.commands.doctor.weights import modules
from sdpo.loop.policy import Policy
from sdpo.method import seeds

_UNUSED = 0.1  # share of trained parameters: some families have a few that nothing depends on, such as padding tokens


def check_gradient(probe: Probe) -> Iterator[Finding]:
    """Check that the gradient of log-probabilities reaches every trained parameter, and no other.

    For an algorithm of reward gradients it is the gradient of x̂. A new LoRA has B = 0, and so no gradient at A:
    parameters that are all 0 hold small noise during the check.
    """
    random = probe.first.stochastic.nonzero().flatten().tolist()
    if probe.parts.update is None:
        random = list(range(probe.first.num_steps))
    if not random:
        return
    trained = probe.parts.backbone.trainable_parameters()
    with without_zeros(trained) as filled:
        try:
            _backward(probe, trained, list(dict.fromkeys([random[0], random[-1]])))
            reached = _read(probe, trained)
        finally:
            _forget(trained)
    yield _judge(reached, len(trained), filled)


@dataclass(frozen=True)
class _Reached:
    """The parameters at which gradients are not as they must be.

    Attributes:
        infinite: trained parameters whose gradient is not finite.
        none: trained parameters without a gradient.
        frozen: parameters that are not trained, and have a gradient or would get one.
    """

    infinite: list[str]
    none: list[str]
    frozen: list[str]


def _backward(probe: Probe, trained: Mapping[str, nn.Parameter], steps: Sequence[int]) -> None:
    """Add the gradients of some steps, at the largest scale of the loss at which they are finite."""
    branches = probe.first.log_prob.shape[1]
    sign = torch.ones(branches, device=probe.first.log_prob.device)
    sign[1::2] = -1  # as in differences of branches
    scales = _scales(probe.parts.policy)
    for scale in scales:
        _forget(trained)
        for step in steps:
            values = probe.log_prob(step) if probe.parts.update is not None else probe.clean(step)
            (scale * (values * sign).sum()).backward()
        if all(p.grad.isfinite().all() for p in trained.values() if p.grad is not None):
            break


def _read(probe: Probe, trained: Mapping[str, nn.Parameter]) -> _Reached:
    """Read where gradients have arrived."""
    gradients = {name: p.grad for name, p in trained.items() if p.grad is not None}
    ours = {id(parameter) for parameter in trained.values()}
    named = (pair for module in modules(probe.parts.backbone) for pair in module.named_parameters())
    return _Reached(
        infinite=[name for name, gradient in gradients.items() if not gradient.isfinite().all()],
        none=[name for name in trained if name not in gradients or not gradients[name].any()],
        frozen=[name for name, p in named if id(p) not in ours and (p.requires_grad or p.grad is not None)],
    )


def _judge(reached: _Reached, trained: int, filled: int) -> Finding:
    """Turn the outcome into a finding."""
    count, none = f"{trained} trained parameters", reached.none
    if reached.frozen:
        return Finding("gradient", "FAIL", f"at {_some(reached.frozen)}, which is frozen")
    if reached.infinite:
        return Finding("gradient", "FAIL", f"not finite at {_some(reached.infinite)}: try model.dtype=bfloat16")
    if len(none) > _UNUSED * trained:
        text = f"none at {len(none)} of {count}, such as {_some(none[:3])}: the network is detached from what is"
        return Finding("gradient", "FAIL", f"{text} trained")
    if none:
        text = f"none at {_some(none)}, of {count}: the network's output does not depend on them. They do no harm, and"
        return Finding("gradient", "WARN", f"{text} lora.targets can leave them out")
    note = f" ({filled} that start at 0 held noise meanwhile)" if filled else ""
    return Finding("gradient", "ok", f"reaches all {count} and no frozen one{note}")


def _scales(policy: Policy) -> tuple[float, ...]:
    """The factors of the loss to try: as in training, gradients in float16 underflow without one."""
    return (2.0**16, 2.0**10, 1.0) if policy.dtype == torch.float16 else (1.0,)


def _forget(parameters: Mapping[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextlib.contextmanager
def without_zeros(parameters: Mapping[str, nn.Parameter]) -> Iterator[int]:
    """A context in which parameters that are all 0 hold small noise; their zeros come back afterwards.

    Args:
        parameters: the parameters by name.

    Yields:
        The number of such parameters.
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
