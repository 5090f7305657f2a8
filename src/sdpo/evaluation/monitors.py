"""Monitors against over-optimisation: how diverse and detailed the images are, and how far from the base model's.

The monitors of a run are measured on the same fixed images at each evaluation, so that evaluations can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpo.backbones import Conditioning
from sdpo.distributed.processes import Processes
from sdpo.loop.policy import Policy
from sdpo.method import gaussian
from sdpo.method.denoisers import Denoiser, Transition

MONITORS = ("diversity", "palette", "edge_density", "entropy", "kl_to_base")
"""The names of the monitors; `metrics.jsonl` has them as `monitor/<name>/<steps>`."""

DRIFT_IMAGES = 8
"""Images on whose trajectories the policy and the base model are compared; monitors cost no other evaluations."""

_THUMBNAIL = 32
_EDGE = 0.1  # difference in brightness between neighbouring pixels, as a share of its range
_LUMA = (0.299, 0.587, 0.114)


def thumbnails(images: Tensor) -> Tensor:
    """Reduce images [N, 3, H, W] by area averaging to at most 32 × 32 pixels; float32 [N, D] on the CPU."""
    height, width = images.shape[-2:]
    return F.adaptive_avg_pool2d(images.float(), (min(_THUMBNAIL, height), min(_THUMBNAIL, width))).flatten(1).cpu()


def diversity(reduced: Tensor, prompts: int) -> float | None:
    """Mean pairwise distance of images: the root of the mean squared difference of their thumbnails' pixels, 0 … 1.

    The mean is over the pairs of each prompt, all prompts weighted equally: does the model still draw a prompt in
    different ways?

    Args:
        reduced: reduced images, [n · prompts, D]; image i has prompt i modulo `prompts`.
        prompts: the number of prompts.

    Returns:
        The distance, or None where there is no pair.
    """
    groups = reduced.unflatten(0, (-1, prompts)).transpose(0, 1)  # [prompts, n, D]
    count, size = groups.shape[1:]
    if count < 2:
        return None
    # The exact form: the usual one by dot products would leave 1e-4 between equal images.
    distances = torch.cdist(groups, groups, compute_mode="donot_use_mm_for_euclid_dist") / size**0.5
    return (distances.sum((1, 2)) / (count * (count - 1))).mean().item()


def corner_colors(images: Tensor) -> Tensor:
    """Mean colour of the four corners of each image, squares of an eighth of the shorter side; float32 [N, 3]."""
    side = max(1, min(images.shape[-2:]) // 8)
    rows, columns = ([slice(None, side), slice(-side, None)] for _ in range(2))
    corners = [images[..., row, column].float().mean((-2, -1)) for row in rows for column in columns]
    return torch.stack(corners).mean(0)


def palette(colors: Tensor) -> float | None:
    """Spread of background colours: the standard deviation over images, averaged over the colour channels, 0 … 0.5.

    Args:
        colors: the mean colour of each image's corners, [N, 3].

    Returns:
        The spread, or None for fewer than two images.
    """
    return colors.double().std(0, correction=0).mean().item() if len(colors) > 1 else None


def edge_density(images: Tensor) -> Tensor:
    """Share of pixels at an edge: the brightness differs from the neighbours below and right by more than 0.1; [N]."""
    bright = _brightness(images)
    down = bright[:, 1:, :-1] - bright[:, :-1, :-1]
    right = bright[:, :-1, 1:] - bright[:, :-1, :-1]
    return ((down.square() + right.square()).sqrt() > _EDGE).float().mean((1, 2))


def histogram_entropy(images: Tensor) -> Tensor:
    """Entropy of each image's histogram of brightness in 256 steps, in bits: 0 (one shade) … 8; [N]."""
    shades = (_brightness(images).clamp(0, 1) * 255).round().long().flatten(1)
    place = shades + 256 * torch.arange(len(shades), device=shades.device)[:, None]
    share = place.flatten().bincount(minlength=256 * len(shades)).unflatten(0, (-1, 256)) / shades.shape[1]
    return -torch.special.xlogy(share, share).sum(1) / torch.log(torch.tensor(2.0))


def _brightness(images: Tensor) -> Tensor:
    """ITU-R BT.601 luma, [N, H, W]."""
    return torch.einsum("nchw,c->nhw", images.float(), torch.tensor(_LUMA, device=images.device))


class Drift:
    """KL divergence of the policy from the base model, on the trajectories of the evaluation.

    At each step of a trajectory that is stochastic in training, KL(N(μ_θ, σ²) ‖ N(μ_base, σ²)) = mean over latent
    elements of (μ_θ − μ_base)² / 2σ², at the latent of the trajectory, whichever sampler drew it; averaged over these
    steps, in nats. It is the quantity that `train.kl_weight` weighs, and 0 for the base model.

    Args:
        policy: the policy that is measured.
        denoiser: the steps of the training sampler.
        count: the number of trajectories that are measured, the first ones.
        asked: the number of trajectories on which the base model is evaluated, at least `count` and equal on all
            processes: sharded networks must be called equally often everywhere. None means `count`.

    Attributes:
        values: float32 [count], complete after the last step of all trajectories.
    """

    def __init__(self, policy: Policy, denoiser: Denoiser, count: int, asked: int | None = None) -> None:
        self.policy = policy
        self.denoiser = denoiser
        self.asked = count if asked is None else asked
        self.values = torch.zeros(count, device=policy.backbone.device)

    def __call__(self, rows: slice, step: int, x: Tensor, transition: Transition, conditioning: Conditioning) -> None:
        """Take in a step of a batch.

        Args:
            rows: the places of the N trajectories.
            step: i.
            x: x_i, [N, C, H, W].
            transition: the transition that the evaluation drew x_{i+1} from, which is not used.
            conditioning: the conditioning of the N trajectories.
        """
        count = min(rows.stop, self.asked) - rows.start
        if count <= 0:
            return
        del transition
        steps = torch.full((count,), step, device=x.device)
        first = {name: values[:count] for name, values in conditioning.items()}
        with self.policy.no_gradient():
            own = self.policy.transition(self.denoiser, x[:count], steps, first)
            with self.policy.backbone.base():
                base = self.policy.transition(self.denoiser, x[:count], steps, first)
        divergence = gaussian.kl_divergence(own.mean, base.mean, own.std)
        values = self.values[rows.start : rows.start + count]
        values += divergence[: len(values)] / self.denoiser.stochastic.sum()


class Monitors:
    """The monitors of one evaluation at one number of steps, on the images that this process draws.

    Args:
        policy: the policy that draws the images.
        denoiser: the steps of the training sampler.
        mine: the places of this process's images among all, ascending.
        prompts: the number of prompts of the evaluation; image i has prompt i modulo `prompts`.
        per_prompt: the number of images of each prompt that are measured, the first ones.
        processes: the number of processes; rank r draws every `processes`-th image from r on.
    """

    def __init__(
        self,
        policy: Policy,
        denoiser: Denoiser,
        mine: Sequence[int],
        prompts: int,
        per_prompt: int,
        processes: int = 1,
    ) -> None:
        images = min(DRIFT_IMAGES, prompts * per_prompt)
        self.drift = Drift(policy, denoiser, sum(i < images for i in mine), -(-images // processes))
        self._own = [i for i in mine if i < prompts * per_prompt]
        self._prompts = prompts
        self._seen = 0
        self._found: list[tuple[int, Tensor, Tensor, float, float]] = []

    def look(self, images: Tensor) -> None:
        """Take in the next images, [N, 3, H, W] in [0, 1]."""
        numbers = self._own[self._seen : self._seen + len(images)]
        self._seen += len(images)
        if numbers:
            images = images[: len(numbers)]
            edges, entropies = edge_density(images).tolist(), histogram_entropy(images).tolist()
            self._found += zip(numbers, thumbnails(images), corner_colors(images).cpu(), edges, entropies, strict=True)

    def finish(self, processes: Processes) -> dict[str, float]:
        """The monitors by name, over the images of all processes, without those that the images do not define."""
        found = sorted(processes.gather(self._found), key=lambda item: item[0])
        drift = torch.tensor(processes.gather(self.drift.values.tolist()))
        means = torch.tensor([item[3:] for item in found], dtype=torch.float64).mean(0).tolist()
        measured = {
            "diversity": diversity(torch.stack([item[1] for item in found]), self._prompts),
            "palette": palette(torch.stack([item[2] for item in found])),
            "edge_density": means[0],
            "entropy": means[1],
            "kl_to_base": drift.mean().item() if self.drift.denoiser.stochastic.any() else None,
        }
        return {name: value for name, value in measured.items() if value is not None}
