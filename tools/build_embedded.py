"""Build the embedded model `emoji`, its reward and its judge from the Noto Color Emoji font.

    python tools/build_embedded.py                 # all stages, continues where it stopped
    python tools/build_embedded.py --stage unet    # one stage
    python tools/build_embedded.py --sheet         # contact sheet and judge rates of the result

Stages, in order: `vae`, `judge`, `scorer`, `unet`, `assemble`. Each stage saves its state to `--work` every
few hundred updates and continues from there when it is started again; data and initial weights are seeded. The last
stage writes fp16 safetensors to `src/sdpo/assets/emoji/`. `--stage scorer` without an autoencoder in `--work` takes the
package's, and writes the reward alone. Needs the font file (Debian package fonts-noto-color-
emoji).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from embedded.composer import ANIMALS, Composer, caption, to_unit
from embedded.damage import decode, encode_all
from embedded.networks import (
    build_tokenizer,
    new_judge,
    new_scheduler,
    new_text_encoder,
    new_unet,
    new_vae,
    tokens,
)
from embedded.scorer import train_scorer
from embedded.stage import Stage, pick
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, ResNetForImageClassification

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "src" / "sdpo" / "assets"


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


class Data:
    """What the later stages share: images, labels, latents and the tokenizer."""

    def __init__(self, work: Path, count: int, vae_steps: int, packaged_vae: bool) -> None:
        start = time.time()
        drawn = Composer().dataset(count, seed=0)
        self.images, self.animals, self.colors = drawn.images, drawn.animals, drawn.colors
        self.coverage, self.backgrounds = drawn.coverage, drawn.backgrounds
        self.tokenizer = build_tokenizer(work / "tokenizer")
        print(f"{count} images drawn in {time.time() - start:.0f} s", flush=True)
        self.vae = self._packaged_vae() if packaged_vae else train_vae(work, self.images, vae_steps)
        self.latents = encode_all(self.vae, self.images)
        self.scale = 1.0 / self.latents.std().item()
        self.reconstructions = (decode(self.vae, self.latents) * 255).round().to(torch.uint8)
        error = (to_unit(self.reconstructions) - to_unit(self.images)).square().mean().item()
        print(f"vae: PSNR {-10 * math.log10(error):.2f} dB, scaling factor {self.scale:.4f}", flush=True)

    @staticmethod
    def _packaged_vae() -> AutoencoderTiny:
        path = ASSETS / "emoji" / "model" / "vae"
        return AutoencoderTiny.from_pretrained(path, torch_dtype=torch.float32).eval().requires_grad_(False)


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
    write_scorer(data, scorer)
    judge.half().save_pretrained(target / "judge")
    # Stored in half precision, computed in full where nobody asks otherwise: transformers would take the stored type.
    rewrite_config(target / "model" / "text_encoder" / "config.json", dtype="float32")
    rewrite_config(target / "model" / "vae" / "config.json", block_out_channels=None)  # diffusers warns of its own key
    for file in target.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    total = sum(f.stat().st_size for f in target.rglob("*.safetensors"))
    print(f"wrote {target}, {total / 1e6:.1f} MB of weights", flush=True)


def write_scorer(data: Data, scorer: nn.Module) -> None:
    scorer.half().save_pretrained(ASSETS / "emoji" / "scorer")
    data.tokenizer.save_pretrained(ASSETS / "emoji" / "scorer")


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
    parser.add_argument("--scorer-steps", type=int, default=2400)
    parser.add_argument("--unet-steps", type=int, default=4000)
    args = parser.parse_args()
    diffusers_logging.set_verbosity_error()
    args.work.mkdir(parents=True, exist_ok=True)
    wanted = list(stages(args))
    if wanted:
        alone = wanted == ["scorer"] and not (args.work / "vae.pt").exists()
        data = Data(args.work, args.images, args.vae_steps, packaged_vae=alone)
        judge = train_judge(args.work, data, args.judge_steps) if {"judge", "assemble"} & set(wanted) else None
        scorer = train_scorer(args.work, data, args.scorer_steps) if {"scorer", "assemble"} & set(wanted) else None
        if alone and scorer is not None:
            write_scorer(data, scorer)
        if {"unet", "assemble"} & set(wanted):
            unet, text_encoder = train_unet(args.work, data, args.unet_steps)
            if "assemble" in wanted:
                assert judge is not None and scorer is not None
                assemble(data, unet, text_encoder, scorer, judge)
    if args.sheet or "assemble" in wanted:
        contact_sheet(args.work)


if __name__ == "__main__":
    main()
