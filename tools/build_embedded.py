"""Build the embedded model `emoji`, its reward and its judge from the Noto Color Emoji font.

    python tools/build_embedded.py                 # all stages, continues where it stopped
    python tools/build_embedded.py --stage unet    # one stage
    python tools/build_embedded.py --sheet         # contact sheet and judge rates of the result

Stages, in order: `vae`, `judge`, `scorer`, `unet`, `assemble`. Each stage saves its state to `--work` every
few hundred updates and continues from there when it is started again; data and initial weights are seeded. The last
stage writes fp16 safetensors to `src/sdpo/assets/emoji/`. Needs the font file (Debian package fonts-noto-color-
emoji).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    ResNetConfig,
    ResNetForImageClassification,
)

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "src" / "sdpo" / "assets"
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
SIZE = 64
GLYPHS = dict(
    cat="🐈", dog="🐕", horse="🐎", monkey="🐒", rabbit="🐇", zebra="🦓", spider="🕷", bird="🐦", sheep="🐑",
    deer="🦌", cow="🐄", goat="🐐", lion="🦁", tiger="🐅", bear="🐻", raccoon="🦝", fox="🦊", wolf="🐺",
    lizard="🦎", beetle="🪲", ant="🐜", butterfly="🦋", fish="🐟", shark="🦈", whale="🐋", dolphin="🐬",
    squirrel="🐿", mouse="🐁", rat="🐀", snake="🐍", turtle="🐢", frog="🐸", chicken="🐔", duck="🦆", goose="🪿",
    bee="🐝", pig="🐖", turkey="🦃", fly="🪰", llama="🦙", camel="🐫", bat="🦇", gorilla="🦍", hedgehog="🦔",
    kangaroo="🦘",
)  # fmt: skip
ANIMALS = list(GLYPHS)
COLORS = dict(
    red=(236, 120, 116), orange=(248, 186, 116), yellow=(250, 232, 136), green=(160, 214, 150),
    blue=(148, 194, 240), purple=(196, 166, 230), pink=(250, 190, 212), white=(246, 246, 244),
)  # fmt: skip
COLOR_NAMES = list(COLORS)


def held_out(animal: int) -> int:
    """The one background colour whose combination with this animal no model is ever shown."""
    return (animal * 5 + 3) % len(COLOR_NAMES)


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def caption(animal: int, color: int, rng: np.random.Generator) -> str:
    name, u = ANIMALS[animal], rng.random()
    if u < 0.5:
        return name
    if u < 0.62:
        return f"{article(name)} {name}"
    return f"{article(name)} {name} on {article(COLOR_NAMES[color])} {COLOR_NAMES[color]} background"


class Composer:
    """Places glyphs of varied size, position and mirroring on varied backgrounds."""

    def __init__(self, font: str = FONT) -> None:
        face = ImageFont.truetype(font, 109)
        self.variants: list[list[np.ndarray]] = []  # [animal][size] premultiplied RGBA float32
        for glyph in GLYPHS.values():
            canvas = Image.new("RGBA", (160, 160))
            ImageDraw.Draw(canvas).text((8, 8), glyph, font=face, embedded_color=True)
            box = canvas.getbbox()
            assert box is not None, f"the font has no glyph for {glyph}"
            art = np.asarray(canvas.crop(box), np.float32)
            art[..., :3] *= art[..., 3:] / 255.0
            sizes = []
            for longest in (46, 49, 52, 55, 58, 61):
                scale = longest / max(art.shape[:2])
                shape = (max(1, round(art.shape[1] * scale)), max(1, round(art.shape[0] * scale)))
                channels = [
                    np.asarray(Image.fromarray(art[..., c]).resize(shape, Image.Resampling.LANCZOS)) for c in range(4)
                ]
                sizes.append(np.clip(np.stack(channels, -1), 0, 255))
            self.variants.append(sizes)

    def draw(self, animal: int, color: int, rng: np.random.Generator) -> np.ndarray:
        """One image, uint8 [64, 64, 3]."""
        art = self.variants[animal][rng.integers(len(self.variants[animal]))]
        if rng.random() < 0.5:
            art = art[:, ::-1]
        base = np.array(COLORS[COLOR_NAMES[color]], np.float32) + rng.normal(0, 5, 3).astype(np.float32)
        shade = np.linspace(-1, 1, SIZE, dtype=np.float32) * rng.uniform(0, 10)
        image = np.broadcast_to(base + shade[:, None, None], (SIZE, SIZE, 3)).copy()
        height, width = art.shape[:2]
        # Positions prefer the centre: half of the free margin is used.
        top = round((SIZE - height) * (0.5 + rng.uniform(-0.25, 0.25)))
        left = round((SIZE - width) * (0.5 + rng.uniform(-0.25, 0.25)))
        window = image[top : top + height, left : left + width]
        window *= 1 - art[..., 3:] / 255.0
        window += art[..., :3]
        return np.clip(image, 0, 255).round().astype(np.uint8)

    def dataset(self, count: int, seed: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """`count` images uint8 [N, 3, 64, 64] with animal and colour indices; held-out pairs never occur."""
        rng = np.random.default_rng(seed)
        animals = np.arange(count) % len(ANIMALS)
        colors = rng.integers(len(COLORS), size=count)
        clash = colors == (animals * 5 + 3) % len(COLORS)
        colors[clash] = (colors[clash] + rng.integers(1, len(COLORS), size=int(clash.sum()))) % len(COLORS)
        images = np.stack([self.draw(a, c, rng) for a, c in zip(animals, colors, strict=True)])
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), animals, colors


def to_unit(images: Tensor) -> Tensor:
    return images.float() / 255.0


# ---------------------------------------------------------------------------------------------- tokenizer


def build_tokenizer(path: Path) -> CLIPTokenizer:
    """A CLIPTokenizer whose merges make every word of the captions one token; other text falls back to letters."""
    symbols = [chr(c) for c in range(33, 127)]
    vocab = symbols + [s + "</w>" for s in symbols]
    merges: list[tuple[str, str]] = []
    words = ["a", "an", "on", "the", "background", "and", "of", *ANIMALS, *COLOR_NAMES]
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        # First the merges of earlier words, by rank as BPE applies them, then new ones for what is left.
        for left, right in merges:
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == (left, right):
                    pieces[i : i + 2] = [left + right]
                i += 1
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            if pieces[0] not in vocab:
                vocab.append(pieces[0])
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    path.mkdir(parents=True, exist_ok=True)
    (path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocab)}))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    tokenizer = CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt"), model_max_length=16)
    for word in words:
        assert len(tokenizer(word).input_ids) == 3, f"{word!r} is not one token"
    return tokenizer


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    return tokenizer(texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids


# ------------------------------------------------------------------------------------------------ networks


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=16, bos_token_id=len(tokenizer) - 2,
            eos_token_id=len(tokenizer) - 1, pad_token_id=len(tokenizer) - 1,
        )
    )  # fmt: skip


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, cross_attention_dim=64, attention_head_dim=4,
        norm_num_groups=16, block_out_channels=(64, 128, 128), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def new_vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32), decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(1, 2, 2), num_decoder_blocks=(2, 2, 1), latent_channels=4,
    )  # fmt: skip


def new_scorer(tokenizer: CLIPTokenizer) -> CLIPModel:
    text = dict(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=len(tokenizer) - 2, eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )  # fmt: skip
    vision = dict(
        hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, image_size=SIZE,
        patch_size=8,
    )  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def new_judge() -> ResNetForImageClassification:
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=24, hidden_sizes=[24, 48, 96, 128], depths=[1, 1, 1, 1], layer_type="basic",
            num_labels=len(ANIMALS), id2label=dict(enumerate(ANIMALS)), label2id={a: i for i, a in enumerate(ANIMALS)},
        )
    )  # fmt: skip


def features(output: Tensor | object) -> Tensor:
    """CLIP features; transformers 5 wraps them in an output object."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------- the trainer


class Stage:
    """A resumable training loop: modules, AdamW with warm-up and cosine decay, EMA, state on disk."""

    def __init__(
        self, name: str, work: Path, modules: dict[str, nn.Module], steps: int, lr: float, ema: float | None = 0.999
    ) -> None:
        self.name, self.path, self.modules, self.steps, self.ema_decay = name, work / f"{name}.pt", modules, steps, ema
        self.params = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.params, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda s: min(1, (s + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / steps)))
        )
        self.average = [p.detach().clone() for p in self.params]
        self.step = 0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            for key, module in modules.items():
                module.load_state_dict(state["modules"][key])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.average, self.step = state["average"], state["step"]

    def save(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        torch.save(
            dict(
                modules={k: m.state_dict() for k, m in self.modules.items()}, optimizer=self.optimizer.state_dict(),
                schedule=self.schedule.state_dict(), average=self.average, step=self.step,
            ),
            temporary,
        )  # fmt: skip
        temporary.replace(self.path)

    def run(self, loss_of: Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]) -> None:
        start, first = time.time(), self.step
        while self.step < self.steps:
            generator = torch.Generator().manual_seed(self.step + 1)
            loss, metrics = loss_of(generator)
            if not torch.isfinite(loss):
                raise RuntimeError(f"{self.name}: loss is {loss.item()} at update {self.step}")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.params, 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            if self.ema_decay is not None:
                decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
                torch._foreach_lerp_(self.average, [p.detach() for p in self.params], 1 - decay)
            if self.step % 100 == 0 or self.step == self.steps:
                rate = (time.time() - start) / (self.step - first)
                extra = " ".join(f"{k} {v:.4f}" for k, v in metrics.items())
                print(
                    f"{self.name} {self.step}/{self.steps} loss {loss.item():.4f} {extra} {rate:.3f} s/it", flush=True
                )
            if self.step % 250 == 0 or self.step == self.steps:
                self.save()
        self.finish()

    def finish(self) -> None:
        """Put the averaged weights into the modules."""
        if self.ema_decay is not None:
            with torch.no_grad():
                for p, a in zip(self.params, self.average, strict=True):
                    p.copy_(a)
        for module in self.modules.values():
            module.eval().requires_grad_(False)


def pick(count: int, batch: int, generator: torch.Generator) -> Tensor:
    return torch.randint(count, (batch,), generator=generator)


# --------------------------------------------------------------------------------------------------- stages


def train_vae(work: Path, images: Tensor, steps: int) -> AutoencoderTiny:
    torch.manual_seed(1)
    vae = new_vae().to(memory_format=torch.channels_last)
    stage = Stage("vae", work, {"vae": vae}, steps, lr=2e-3, ema=0.998)

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x = to_unit(images[pick(len(images), 20, generator)]) * 2 - 1
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            z = vae.encoder(x).float()
            # Noise on the latents makes neighbouring latents decode alike, which the diffusion model needs.
            noisy = z + 0.08 * torch.randn(z.shape, generator=generator)
            y = vae.decoder(noisy).float()
        recon = (y - x).abs().mean() + 0.5 * (y - x).square().mean()
        edges = (y.diff(dim=-1) - x.diff(dim=-1)).abs().mean() + (y.diff(dim=-2) - x.diff(dim=-2)).abs().mean()
        spread = z.mean((0, 2, 3)).square().mean() + (z.std((0, 2, 3)) - 1).square().mean()
        loss = recon + 0.7 * edges + 0.05 * spread
        return loss, dict(l1=(y - x).abs().mean().item(), z_std=z.std().item())

    if stage.step < steps:
        stage.run(loss_of)
    stage.finish()
    return vae


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


def train_judge(work: Path, data: Data, steps: int) -> ResNetForImageClassification:
    torch.manual_seed(2)
    judge = new_judge()
    stage = Stage("judge", work, {"judge": judge}, steps, lr=2e-3, ema=None)

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        judge.train()
        index = pick(len(data.images), 64, generator)
        x = torch.where(
            (torch.rand(64, generator=generator) < 0.5)[:, None, None, None],
            to_unit(data.images[index]), to_unit(data.reconstructions[index]),
        )  # fmt: skip
        labels = torch.from_numpy(data.animals)[index]
        x = x + 0.03 * torch.rand(64, 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
        # Mixed images get mixed labels: the judge is to be unsure of what is half there.
        mix = torch.where(torch.rand(64, generator=generator) < 0.4, torch.rand(64, generator=generator), 1.0)
        x = mix[:, None, None, None] * x + (1 - mix[:, None, None, None]) * x.roll(1, 0)
        log_probs = judge(pixel_values=x * 2 - 1).logits.log_softmax(-1)
        own = log_probs.gather(1, labels[:, None])[:, 0]
        other = log_probs.gather(1, labels.roll(1)[:, None])[:, 0]
        loss = -(mix * own + (1 - mix) * other).mean()
        clear = mix == 1
        return loss, dict(accuracy=(log_probs.argmax(-1) == labels)[clear].float().mean().item())

    if stage.step < steps:
        stage.run(loss_of)
    stage.finish()
    return judge


def train_scorer(work: Path, data: Data, steps: int) -> CLIPModel:
    """Score = cosine of image and text; soft targets make it fall smoothly with damage."""
    torch.manual_seed(3)
    scorer = new_scorer(data.tokenizer)
    stage = Stage("scorer", work, {"scorer": scorer}, steps, lr=1e-3, ema=0.998)
    by_animal = [np.flatnonzero(data.animals == a) for a in range(len(ANIMALS))]

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        n = 48
        index = pick(len(data.images), n, generator)
        animals, colors = data.animals[index.numpy()], data.colors[index.numpy()]
        clean = torch.where(
            (torch.rand(n, generator=generator) < 0.5)[:, None, None, None],
            to_unit(data.images[index]), to_unit(data.reconstructions[index]),
        )  # fmt: skip
        partner = torch.tensor([rng.choice(by_animal[a]) for a in animals])
        worse, severity = damage(clean, to_unit(data.images[partner]), data.latents[index], data.vae, generator)
        pixels = torch.cat([clean, worse])
        texts = [caption(a, c, rng) for a, c in zip(animals, colors, strict=True)]
        # match[i, j]: does caption j describe image i?
        names = [t for t in texts]
        match = torch.zeros(n, n)
        for j, text in enumerate(names):
            colored = text.endswith("background")
            match[:, j] = torch.from_numpy((animals == animals[j]) & ((colors == colors[j]) | (not colored))).float()
        with torch.autocast("cpu", torch.bfloat16):
            image = features(scorer.get_image_features(pixel_values=pixels * 2 - 1)).float()
            text_ids = tokens(data.tokenizer, texts)
            text = features(scorer.get_text_features(input_ids=text_ids)).float()
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        cosine = image @ text.T  # [2n, n]
        quality = torch.cat([torch.ones(n), 1 - severity])
        full_match = torch.cat([match, match])
        # Contrastive: the right caption among all, weighted by how much of the image is left.
        logits = 20 * cosine
        nll = -(logits.log_softmax(-1) * full_match / full_match.sum(-1, keepdim=True)).sum(-1)
        # Regression on the matching pairs: cosine = 0.9 for whole images, falling linearly to 0.1 when ruined.
        own = torch.cat([cosine[:n].diagonal(), cosine[n:].diagonal()])
        grade = (own - (0.1 + 0.8 * quality)).square()
        # Mismatched pairs: cosine at most 0.
        wrong = (cosine.clamp(min=0).square() * (1 - full_match)).sum() / (1 - full_match).sum()
        loss = 0.5 * (nll * quality).mean() + 8 * grade.mean() + 4 * wrong
        return loss, dict(grade=grade.mean().sqrt().item(), clean=own[:n].mean().item(), wrong=wrong.item())

    if stage.step < steps:
        stage.run(loss_of)
    stage.finish()
    return scorer


def train_unet(work: Path, data: Data, steps: int, batch: int = 64) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    torch.manual_seed(4)
    unet = new_unet().to(memory_format=torch.channels_last)
    text_encoder = new_text_encoder(data.tokenizer)
    stage = Stage("unet", work, {"unet": unet, "text_encoder": text_encoder}, steps, lr=1.2e-3, ema=0.998)
    scheduler = new_scheduler()
    alpha, sigma = scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt()
    latents = data.latents * data.scale

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        index = pick(len(latents), batch, generator)
        texts = [
            caption(a, c, rng) for a, c in zip(data.animals[index.numpy()], data.colors[index.numpy()], strict=True)
        ]
        texts = ["" if rng.random() < 0.04 else t for t in texts]
        x0 = latents[index]
        noise = torch.randn(x0.shape, generator=generator)
        # Few-step sampling visits the noisy end most: timesteps lean towards it, the first one gets a share of its own.
        u = torch.rand(batch, generator=generator)
        t = (1000 * u**0.7).long().clamp(max=999)
        t = torch.where(torch.rand(batch, generator=generator) < 0.08, 999, t)
        a, s = alpha[t][:, None, None, None], sigma[t][:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            context = text_encoder(tokens(data.tokenizer, texts)).last_hidden_state
            noisy = (a * x0 + s * noise).contiguous(memory_format=torch.channels_last)
            velocity = unet(noisy, t, context).sample.float()
        error = (velocity - (a * noise - s * x0)).square().mean((1, 2, 3))
        return error.mean(), {}

    if stage.step < steps:
        stage.run(loss_of)
    stage.finish()
    return unet, text_encoder


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


class Data:
    """What the later stages share: images, labels, latents and the tokenizer."""

    def __init__(self, work: Path, count: int, vae_steps: int) -> None:
        start = time.time()
        self.images, self.animals, self.colors = Composer().dataset(count, seed=0)
        self.tokenizer = build_tokenizer(work / "tokenizer")
        print(f"{count} images drawn in {time.time() - start:.0f} s", flush=True)
        self.vae = train_vae(work, self.images, vae_steps)
        self.latents = encode_all(self.vae, self.images)
        self.scale = 1.0 / self.latents.std().item()
        self.reconstructions = (decode(self.vae, self.latents) * 255).round().to(torch.uint8)
        error = (to_unit(self.reconstructions) - to_unit(self.images)).square().mean().item()
        print(f"vae: PSNR {-10 * math.log10(error):.2f} dB, scaling factor {self.scale:.4f}", flush=True)


def assemble(data: Data, unet: nn.Module, text_encoder: nn.Module, scorer: nn.Module, judge: nn.Module) -> None:
    data.vae.register_to_config(scaling_factor=data.scale)
    pipeline = StableDiffusionPipeline(
        vae=data.vae, text_encoder=text_encoder, tokenizer=data.tokenizer, unet=unet, scheduler=new_scheduler(),
        safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip
    target = ASSETS / "emoji"
    pipeline.to(memory_format=torch.contiguous_format).to(dtype=torch.float16).save_pretrained(
        target / "model", safe_serialization=True
    )
    scorer.half().save_pretrained(target / "scorer")
    data.tokenizer.save_pretrained(target / "scorer")
    judge.half().save_pretrained(target / "judge")
    # Stored in half precision, computed in full where nobody asks otherwise: transformers would take the stored type.
    rewrite_config(target / "model" / "text_encoder" / "config.json", dtype="float32")
    rewrite_config(target / "model" / "vae" / "config.json", block_out_channels=None)  # diffusers warns of its own key
    for file in target.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    total = sum(f.stat().st_size for f in target.rglob("*.safetensors"))
    print(f"wrote {target}, {total / 1e6:.1f} MB of weights", flush=True)


def rewrite_config(path: Path, **values: object) -> None:
    """Set values of a JSON file; None removes one."""
    config = {k: v for k, v in {**json.loads(path.read_text()), **values}.items() if v is not None}
    path.write_text(json.dumps(config, indent=2) + "\n")


def contact_sheet(work: Path, device_steps: tuple[int, ...] = (1, 2, 4, 8)) -> None:
    """Samples of the built pipeline and the judge's recognition rate at each number of steps."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        ASSETS / "emoji" / "model", safety_checker=None, dtype=torch.float32, use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)
    judge = ResNetForImageClassification.from_pretrained(ASSETS / "emoji" / "judge", dtype=torch.float32).eval()
    sheet = Image.new("RGB", (15 * 66, 12 * 66 + 3 * 10), "white")
    for row, steps in enumerate(device_steps):
        generator = [torch.Generator().manual_seed(i) for i in range(4 * 45)]
        images = pipeline(
            ANIMALS * 4, num_inference_steps=steps, guidance_scale=1.0, generator=generator, output_type="np", eta=1.0
        ).images
        x = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            p = judge(pixel_values=x * 2 - 1).logits.softmax(-1)
        right = p.argmax(-1) == torch.arange(45).repeat(4)
        sure = right & (p.amax(-1) > 0.5)
        print(f"{steps} steps: judge {100 * right.float().mean():.1f} % (half sure {100 * sure.float().mean():.1f} %)")
        for i in range(45):
            tile = Image.fromarray((images[i] * 255).round().astype(np.uint8))
            sheet.paste(tile, ((i % 15) * 66, (row * 3 + i // 15) * 66 + row * 10))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(work / "sheet.png")


def stages(args: argparse.Namespace) -> Iterator[str]:
    if args.sheet:
        return
    yield from (["vae", "judge", "scorer", "unet", "assemble"] if args.stage == "all" else [args.stage])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "embedded")
    parser.add_argument("--stage", choices=["all", "vae", "judge", "scorer", "unet", "assemble"], default="all")
    parser.add_argument("--sheet", action="store_true", help="draw samples of the finished model")
    parser.add_argument("--images", type=int, default=45 * 500)
    parser.add_argument("--vae-steps", type=int, default=2200)
    parser.add_argument("--judge-steps", type=int, default=700)
    parser.add_argument("--scorer-steps", type=int, default=1800)
    parser.add_argument("--unet-steps", type=int, default=4000)
    args = parser.parse_args()
    diffusers_logging.set_verbosity_error()
    args.work.mkdir(parents=True, exist_ok=True)
    wanted = list(stages(args))
    if wanted:
        data = Data(args.work, args.images, args.vae_steps)
        judge = train_judge(args.work, data, args.judge_steps) if {"judge", "assemble"} & set(wanted) else None
        scorer = train_scorer(args.work, data, args.scorer_steps) if {"scorer", "assemble"} & set(wanted) else None
        if {"unet", "assemble"} & set(wanted):
            unet, text_encoder = train_unet(args.work, data, args.unet_steps)
            if "assemble" in wanted:
                assert judge is not None and scorer is not None
                assemble(data, unet, text_encoder, scorer, judge)
    if args.sheet or "assemble" in wanted:
        contact_sheet(args.work)


if __name__ == "__main__":
    main()
