"""Measures epochs on a GPU without any download: SD-Turbo's architecture with random weights.

    python tools/gpu_bench.py --out results/ [--steps 4 50] [--small]

Writes the random pipeline once (2.6 GB). Then writes, for each number of steps, with and without torch.compile, the
JSON file of `sdpo bench`, and prints a table with TFLOP/s beside the rate of the card's matrix products. `--small`
rehearses this on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sdpo import Config, embedded
from sdpo.backbones import load_backbone
from sdpo.commands.bench import BenchResult, bench
from sdpo.commands.bench.stopwatch import seconds

DTYPE = torch.bfloat16


def write_pipeline(path: Path, small: bool) -> None:
    """Write a StableDiffusionPipeline with the sizes of SD-Turbo's public configuration files and random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")  # a GPU draws 1.2 billion weights faster
    width = 32 if small else 320
    unet = UNet2DConditionModel(
        sample_size=16 if small else 64,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=64 if small else 1024,
        attention_head_dim=[1, 2, 4, 4] if small else [5, 10, 20, 20],
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        layers_per_block=2,
        use_linear_projection=True,
    )
    channels = 32 if small else 128
    vae = AutoencoderKL(
        block_out_channels=(channels, 2 * channels, 4 * channels, 4 * channels),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=128 if small else 768,
    )
    tokenizer = CLIPTokenizer.from_pretrained(Path(embedded("emoji")) / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=64 if small else 1024, intermediate_size=128 if small else 4096,
            num_hidden_layers=2 if small else 23, num_attention_heads=4 if small else 16, max_position_embeddings=77,
            bos_token_id=len(tokenizer) - 2, eos_token_id=len(tokenizer) - 1, pad_token_id=len(tokenizer) - 1,
        )
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="trailing",
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).to(dtype=DTYPE).save_pretrained(path)  # fmt: skip
    torch.set_default_device("cpu")


def matrix_rate(device: torch.device, size: int) -> float:
    """Measure the device's rate of matrix products in bfloat16, in TFLOP/s; returns the best of 10."""
    a, b = (torch.randn(size, size, device=device, dtype=DTYPE) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        best = min(best, seconds(device, lambda: [a @ b for _ in range(10)]) / 10)
    return 2 * size**3 / best / 1e12


def forward_flops(path: Path, device: torch.device) -> float:
    """Count the floating-point operations of one evaluation of the network."""
    backbone = load_backbone(str(path), dtype=DTYPE, device=device)
    conditioning = backbone.encode(["a cat"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        latents = torch.randn(1, *backbone.latent_shape, device=device)
        backbone.network(latents, torch.tensor([500], device=device), conditioning)
    return float(counter.get_total_flops())


def config(path: Path, steps: int, compiled: bool, small: bool) -> Config:
    """The configuration of a run with four visited steps an epoch, whatever the number of steps."""
    groups = 4 if small else 32
    values: dict[str, Any] = dict(
        model={"path": str(path), "dtype": "bfloat16", "compile": compiled, "tf32": True},
        lora={"rank": 4, "alpha": 4, "targets": None},
        rewards={"colorfulness": 1.0},
        prompts={"train": ["cat", "dog", "fox", "owl"], "unseen": None},
        algorithm={"credit": "step"},
        sample={"num_steps": steps, "prompts_per_epoch": groups},
        train={"batch_size": groups, "timestep_fraction": min(1.0, 4 / steps)},
        evaluate={"every": 0, "steps": [1], "images_per_prompt": 1, "judge": None},
    )
    return Config.load("emoji", **values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_bench"))
    parser.add_argument(
        "--model",
        type=Path,
        help="folder of the random pipeline, which is written if it is missing; default: OUT/model",
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 50])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.model or arguments.out / "model"
    if not (path / "model_index.json").exists():
        write_pipeline(path, arguments.small)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matrix_rate(device, 512 if arguments.small else 8192)
    flops = forward_flops(path, device)
    print(f"one evaluation: {flops / 1e9:.1f} GFLOP; matrix products: {rate:.2f} TFLOP/s")
    print(
        "| T | compiled | epoch, s | ratio | forward: batch, ms, TFLOP/s | forward + backward: batch, ms | peak, GB |"
    )
    print("|---|---|---|---|---|---|---|")
    for steps in arguments.steps:
        for compiled in (False, True):
            found = bench(config(path, steps, compiled, arguments.small), arguments.repetitions)
            name = f"steps_{steps}{'_compiled' if compiled else ''}.json"
            record = {**dataclasses.asdict(found), "flops_forward": flops, "matrix_tflops": rate}
            (arguments.out / name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            print(f"| {steps} | {compiled} | {row(found, flops, rate)} |", flush=True)


def row(found: BenchResult, flops: float, rate: float) -> str:
    """The cells of the table after the number of steps."""
    bare, batch = found.bare, found.batch
    reached = flops / bare["forward_best"] / 1e12
    return (
        f"{found.epoch:.2f} | {found.ratio:.3f} | {batch['forward']}, {1e3 * bare['forward_best']:.1f}, {reached:.2f} "
        f"({reached / rate:.0%}) | {batch['backward']}, {1e3 * bare['backward_best']:.1f} | "
        f"{found.peak_bytes / 1e9:.1f}"
    )


if __name__ == "__main__":
    main()
