"""Trains the reward: the cosine of image and caption, which falls with damage and is blind to an unnamed background.

A gradient finds every hole of a reward, and a reward that likes animals better on one colour ends with backgrounds of
that colour. So every image is scored on two backgrounds, of which one has any colour: where the caption names none, the
two scores must be equal; where it names another, the score must be low.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from embedded.composer import ANIMALS, COLOR_NAMES, COLORS, SIZE, article, caption, to_unit
from embedded.damage import damage
from embedded.networks import features, new_scorer, tokens
from embedded.stage import Stage, pick

_BATCH = 40
_FAR = 0.2  # backgrounds whose colours differ by more than this in a channel have different names


class Data(Protocol):
    """Composed images, their parts and labels, and the autoencoder's latents and reconstructions of them."""

    images: Tensor
    reconstructions: Tensor
    latents: Tensor
    coverage: Tensor
    backgrounds: Tensor
    animals: np.ndarray
    colors: np.ndarray
    vae: AutoencoderTiny
    tokenizer: CLIPTokenizer


@dataclass(frozen=True)
class _Batch:
    """N images on two backgrounds each, whole and damaged, with captions.

    Attributes:
        first: whole images on their own backgrounds, then the same damaged, [2N, 3, 64, 64].
        second: the same on other backgrounds.
        quality: 1 for whole images, less with damage, [2N].
        captions: N captions, some of which name the first background.
        names: N captions that name the animal alone.
        match: whether caption j describes image i on its first background, 0 or 1, [N, N].
        absent: whether the caption names a background that the second one is not, bool [N].
    """

    first: Tensor
    second: Tensor
    quality: Tensor
    captions: list[str]
    names: list[str]
    match: Tensor
    absent: Tensor


def train_scorer(work: Path, data: Data, steps: int) -> CLIPModel:
    """Train the scorer; soft targets make it fall smoothly with damage."""
    torch.manual_seed(3)
    scorer = new_scorer(data.tokenizer)
    stage = Stage("scorer", work, {"scorer": scorer}, steps, lr=1e-3, ema=0.998)
    by_animal = [np.flatnonzero(data.animals == a) for a in range(len(ANIMALS))]

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return _loss(scorer, _draw(data, by_animal, generator), data.tokenizer)

    if stage.step < steps:
        stage.run(loss_of)
    stage.finish()
    return scorer


def _draw(data: Data, by_animal: list[np.ndarray], generator: torch.Generator) -> _Batch:
    rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    index = pick(len(data.images), _BATCH, generator)
    animals, colors = data.animals[index.numpy()], data.colors[index.numpy()]
    decoded = (torch.rand(_BATCH, generator=generator) >= 0.5)[:, None, None, None]
    clean = torch.where(decoded, to_unit(data.reconstructions[index]), to_unit(data.images[index]))
    partner = torch.tensor([rng.choice(by_animal[a]) for a in animals])
    background, color = _other_backgrounds(rng, generator)
    other = _on(clean, data, index, background)
    # The same damage to both, by the same random numbers.
    again = torch.Generator()
    again.set_state(generator.get_state())
    partners = to_unit(data.images[partner])
    worse, severity = damage(clean, partners, data.latents[index], data.vae, generator)
    with torch.no_grad():
        latents = data.vae.encoder(other * 2 - 1)
    other_worse, _ = damage(other, _on(partners, data, partner, background), latents, data.vae, again)
    captions = [caption(a, c, rng) for a, c in zip(animals, colors, strict=True)]
    named = np.array([text.endswith("background") for text in captions])
    match = (animals[:, None] == animals) & ((colors[:, None] == colors) | ~named)
    distance = (color - data.backgrounds[index].mean((2, 3))).abs().amax(1)
    return _Batch(
        first=torch.cat([clean, worse]),
        second=torch.cat([other, other_worse]),
        quality=torch.cat([torch.ones(_BATCH), 1 - severity]),
        captions=captions,
        names=[ANIMALS[a] if rng.random() < 0.7 else f"{article(ANIMALS[a])} {ANIMALS[a]}" for a in animals],
        match=torch.from_numpy(match).float(),
        absent=torch.from_numpy(named) & (distance > _FAR),
    )


def _other_backgrounds(rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Backgrounds [N, 3, 64, 1], half of any colour and half of those that captions name; and their colours [N, 3]."""
    any_color = torch.rand(_BATCH, 3, generator=generator)
    palette = torch.tensor([COLORS[name] for name in COLOR_NAMES]).float() / 255
    known = palette[torch.from_numpy(rng.integers(len(COLORS), size=_BATCH))]
    color = torch.where(torch.rand(_BATCH, 1, generator=generator) < 0.5, known, any_color)
    tilt = 0.08 * (torch.rand(_BATCH, 3, 1, 1, generator=generator) - 0.5) * torch.linspace(-1, 1, SIZE)[:, None]
    return color[:, :, None, None] + tilt, color


def _on(images: Tensor, data: Data, index: Tensor, background: Tensor) -> Tensor:
    """Images of the data set on other backgrounds."""
    uncovered = 1 - to_unit(data.coverage[index])
    return (images + uncovered * (background - data.backgrounds[index])).clamp(0, 1)


def _loss(scorer: CLIPModel, batch: _Batch, tokenizer: CLIPTokenizer) -> tuple[Tensor, dict[str, float]]:
    with torch.autocast("cpu", torch.bfloat16):
        pixels = torch.cat([batch.first, batch.second]) * 2 - 1
        image = features(scorer.get_image_features(pixel_values=pixels)).float()
        text = features(scorer.get_text_features(input_ids=tokens(tokenizer, batch.captions + batch.names))).float()
    first, second = F.normalize(image, dim=-1).chunk(2)  # [2N, D] each
    captions, names = F.normalize(text, dim=-1).chunk(2)  # [N, D] each
    match, target = batch.match.repeat(2, 1), 0.1 + 0.8 * batch.quality
    cosine = first @ captions.T  # [2N, N]
    # Contrastive: the right caption among all, weighted by how much of the image is left.
    nll = -((20 * cosine).log_softmax(-1) * match / match.sum(-1, keepdim=True)).sum(-1)
    # Regression on the matching pairs: cosine = 0.9 for whole images, falling linearly to 0.1 when ruined.
    own = torch.cat([half.diagonal() for half in cosine.chunk(2)])
    grade = (own - target).square()
    # The same for the animal alone, on both backgrounds, whose scores must also be equal.
    here, there = ((half * names.repeat(2, 1)).sum(-1) for half in (first, second))
    either = ((here - target).square() + (there - target).square()) / 2
    blind = (here - there).square()
    # Mismatched pairs, and named backgrounds that are not there: cosine at most 0.
    wrong = (cosine.clamp(min=0).square() * (1 - match)).sum() / (1 - match).sum()
    absent = batch.absent.repeat(2).float()
    elsewhere = (second * captions.repeat(2, 1)).sum(-1).clamp(min=0).square()
    missing = (elsewhere * absent).sum() / absent.sum().clamp(min=1)
    loss = 0.5 * (nll * batch.quality).mean() + 5 * grade.mean() + 5 * either.mean()
    loss = loss + 8 * blind.mean() + 4 * wrong + 1 * missing
    metrics = dict(
        grade=grade.mean().sqrt(), blind=blind.mean().sqrt(), clean=own[:_BATCH].mean(), wrong=wrong, missing=missing
    )
    return loss, {name: value.item() for name, value in metrics.items()}
