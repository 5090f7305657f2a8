"""Damages images by a known severity, as unfinished or over-smoothed sampling does."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

from embedded.composer import SIZE, to_unit


@torch.no_grad()
def encode_all(vae: AutoencoderTiny, images: Tensor) -> Tensor:
    parts = [vae.encoder(to_unit(chunk) * 2 - 1) for chunk in images.split(256)]
    return torch.cat(parts)


@torch.no_grad()
def decode(vae: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Images in [0, 1]."""
    return torch.cat([(vae.decoder(c) / 2 + 0.5).clamp(0, 1) for c in latents.split(256)])


def blur(x: Tensor, sigma: float) -> Tensor:
    radius = max(1, math.ceil(2.5 * sigma))
    t = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (t / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1, 1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel, groups=3)
    return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3), groups=3)


def damage(
    x: Tensor, others: Tensor, latents: Tensor, vae: AutoencoderTiny, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Damage images by one of seven kinds with a random severity in [0, 1]; returns images and severities.

    `others` are images of the same animals in other places, whose superposition is what one-step sampling shows.
    """
    n = len(x)
    severity = torch.rand(n, generator=generator)
    kind = torch.randint(7, (n,), generator=generator)
    s = severity[:, None, None, None]
    out = x.clone()
    for k in range(7):
        m = kind == k
        if not m.any():
            continue
        a, b, sm = x[m], others[m], s[m]
        if k == 0:  # blur, three strengths
            sigma = 0.6 + 3.0 * float(severity[m].mean())
            severity[m] = severity[m].mean()
            out[m] = blur(a, sigma)
        elif k == 1:  # pixel noise
            out[m] = a + 0.35 * sm * torch.randn(a.shape, generator=generator)
        elif k == 2:  # wash-out or over-saturation, and a colour cast
            grey = a.mean((1, 2, 3), keepdim=True)
            sign = torch.where(torch.rand(len(a), 1, 1, 1, generator=generator) < 0.6, -0.85, 1.2)
            cast = 0.25 * sm * torch.randn(len(a), 3, 1, 1, generator=generator)
            out[m] = grey + (a - grey) * (1 + sign * sm) + cast
        elif k == 3:  # superposition of several places
            out[m] = a * (1 - 0.5 * sm) + 0.5 * sm * b
        elif k == 4:  # missing parts, filled with the corner's colour
            filled = a.clone()
            for j in range(len(a)):
                w = int(12 + 36 * float(severity[m][j]))
                top, left = (torch.randint(0, SIZE - w + 1, (2,), generator=generator)).tolist()
                filled[j, :, top : top + w, left : left + w] = a[j, :, :1, :1]
            out[m] = filled
        elif k == 5:  # damaged latents: the texture that an unfinished denoising leaves
            z = latents[m]
            out[m] = decode(vae, z * (1 - 0.4 * sm) + 0.9 * sm * torch.randn(z.shape, generator=generator))
        else:  # smooth latents: what a conditional mean decodes to
            z = latents[m]
            smooth = F.avg_pool2d(F.pad(z, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
            out[m] = decode(vae, z + sm * (smooth - z))
    return out.clamp(0, 1), severity
