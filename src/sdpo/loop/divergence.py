"""Finds NaN and infinity where they begin, and names the tensor, the step and the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.errors import DivergenceError
from sdpo.method.types import Trajectories


class NotFiniteError(DivergenceError):
    """A tensor of the loop is not finite; the message names the tensor alone, with its step and prompt."""


def check_trajectories(part: Trajectories) -> None:
    """Refuse sampled trajectories that are not finite; the host waits for the device.

    Args:
        part: the trajectories of some groups.

    Raises:
        NotFiniteError: naming the first tensor, step, branch and prompt that is not finite.
    """
    for name, tensor in (("log-probability", part.log_prob), ("predicted clean latent", part.x0)):
        if tensor is not None and not (finite := tensor.isfinite()).all():
            group, branch, step = finite.reshape(*finite.shape[:3], -1).all(-1).logical_not().nonzero()[0].tolist()
            step += 0 if part.branched is None else int(part.branched.step[group])
            raise NotFiniteError(
                f"the {name} of step {step} of branch {branch} for prompt {part.prompts[group]!r}, while sampling,"
            )


def check_images(images: Tensor, prompts: Sequence[str]) -> None:
    """Refuse decoded images that are not finite, before a reward sees them; the host waits for the device.

    Args:
        images: [N, 3, H, W].
        prompts: the N prompts, for the message.

    Raises:
        DivergenceError: naming the prompt of the first such image.
    """
    if not (finite := images.isfinite()).all():
        prompt = prompts[int(finite.flatten(1).all(1).logical_not().nonzero()[0, 0])]
        raise DivergenceError(
            f"the image for prompt {prompt!r} has values that are not finite: the weights have diverged (lower "
            "train.learning_rate), or the decoder's precision is too narrow (use a wider model.dtype)."
        )


@dataclass(frozen=True, order=True)
class NonFinite:
    """A value of an epoch's update that is not finite; the least of several is the cause of the others.

    Attributes:
        optimizer_step: the optimizer step of the epoch, from 0.
        kind: 0 for a log-probability or another watched tensor, 1 for a loss, 2 for a gradient.
        what: the tensor, with its step and prompt.
    """

    optimizer_step: int
    kind: int
    what: str


class FiniteWatch:
    """Flags of one epoch's update that say whether its values are finite.

    The flags stay on the device until the epoch is over, so that no step waits for them.

    Args:
        prompts: the prompts of the B groups.
        quantity: the name of the tensor whose values are watched beside the loss, for messages.
    """

    def __init__(self, prompts: list[str], quantity: str = "log-probability") -> None:
        self._prompts = prompts
        self._quantity = quantity
        self._forward: list[tuple[int, slice, Tensor, Tensor]] = []  # optimizer step, groups, their steps, flags
        self._norms: list[Tensor | None] = []
        self._names: list[str] = []

    def add(self, rows: slice, steps: Tensor, values: Tensor, loss: Tensor) -> None:
        """Take in a micro-batch.

        Args:
            rows: the n groups of the micro-batch among the B.
            steps: the step of each group, int64 [n], on the CPU.
            values: the watched tensor, such as log-probabilities, [n, …].
            loss: the loss, a scalar.
        """
        flags = torch.cat([values.detach().flatten(1).isfinite().all(1), loss.detach().isfinite()[None]])
        self._forward.append((len(self._norms), rows, steps, flags))

    def poison(self, gradient: Tensor) -> None:
        """Make a gradient NaN where its minibatch is not finite, so that averaging gradients tells all processes."""
        gradient[(0,) * gradient.ndim] += self.mark() - 1

    def mark(self) -> Tensor:
        """1 if all log-probabilities and losses of this minibatch so far are finite, else NaN; a scalar."""
        flags = torch.cat([flags for step, _, _, flags in self._forward if step == len(self._norms)])
        return torch.where(flags.all(), 1.0, torch.nan)

    def end_step(self, norms: Tensor | None, names: list[str]) -> None:
        """Close an optimizer step.

        Args:
            norms: the norms of the P gradients, [P], or None where scaled gradients may overflow without harm.
            names: the names of the P parameters.
        """
        self._norms.append(norms)
        self._names = names

    @property
    def optimizer_steps(self) -> int:
        """The number of optimizer steps that are closed, made or skipped."""
        return len(self._norms)

    def first(self) -> NonFinite | None:
        """The first value that is not finite, or None; the host waits for the device."""
        found = [f for f in (self._in_forward(), self._in_gradients()) if f is not None]
        return min(found, default=None)

    def _in_forward(self) -> NonFinite | None:
        flags = torch.cat([own for *_, own in self._forward]).cpu().split([len(own) for *_, own in self._forward])
        for (optimizer_step, rows, steps, _), own in zip(self._forward, flags, strict=True):
            if own.all():
                continue
            at = [f"step {s} for prompt {p!r}" for s, p in zip(steps.tolist(), self._prompts[rows], strict=True)]
            *fine, _ = own.tolist()
            if not all(fine):
                return NonFinite(optimizer_step, 0, f"the {self._quantity} of {at[fine.index(False)]}")
            return NonFinite(optimizer_step, 1, f"the loss of {', '.join(at)}")
        return None

    def _in_gradients(self) -> NonFinite | None:
        for optimizer_step, norms in enumerate(self._norms):
            if norms is not None and not all(fine := norms.isfinite().tolist()):
                return NonFinite(optimizer_step, 2, f"the gradient of {self._names[fine.index(False)]}")
        return None
