"""Measures how time and memory of an epoch grow with each dimension of a run; prints a table for each dimension.

    python tools/growth.py steps batch rank resolution processes reward > growth.md

Each row is measured in a process of its own, so that its peak memory is its own. The embedded model is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sdpo.run.directory import RunDirectory
from sdpo.run.metrics import read_rows

BASE = ["emoji", "algorithm.credit=step", "sample.prompts_per_epoch=24", "train.batch_size=24", "sample.num_steps=4",
        "lora={rank: 4, alpha: 4}", "sample.micro_batch=12", "train.micro_batch=12"]  # fmt: skip

DIMENSIONS: dict[str, tuple[str, list[tuple[str, list[str]]]]] = {
    "steps": (
        "T: time = a + b·T evaluations; only the stored latents add memory",
        [(f"T = {t}", [f"sample.num_steps={t}"]) for t in (1, 2, 4, 8, 16, 50)],
    ),
    "batch": (
        "Groups an epoch, at one micro-batch: time in proportion; only the stored latents add memory",
        [(f"{n} groups", [f"sample.prompts_per_epoch={n}", f"train.batch_size={n}"]) for n in (12, 24, 48, 96)],
    ),
    "micro_batch": (
        "Groups a call: time falls to the network's best; memory = constant + activations · micro-batch",
        [(f"{n} groups a call", [f"sample.micro_batch={n}", f"train.micro_batch={n}"]) for n in (1, 2, 4, 8, 12, 24)],
    ),
    "rank": (
        "LoRA rank, on every attention projection: little, until the products of rank r take time",
        [(f"rank {r}", [f"lora={{rank: {r}, alpha: {r}}}"]) for r in (1, 4, 16, 64)]
        + [("all weights", ["lora=null", "train.learning_rate=1e-5"])],
    ),
    "resolution": (
        "Pixels a side: time and activations in proportion to the area, attention to its square",
        [(f"{s}²", [f"model.height={s}", f"model.width={s}"]) for s in (64, 96, 128)],
    ),
    "reward": (
        "A reward of 0 … 1000 ms an image at T = 8: three queries a trajectory beside all eight",
        [
            (f"{ms} ms, {plan}", ["sample.num_steps=8", "sample.prompts_per_epoch=4", "train.batch_size=4",
                                  f"algorithm.reward_plan={plan}", "rewards={growth:Slow: 1.0}",
                                  f"reward_options={{growth:Slow: {{milliseconds: {ms}}}}}"])
            for ms in (0, 10, 100, 1000) for plan in ("anchors", "all")
        ],
    ),
}  # fmt: skip


class Slow:
    """A reward that takes a fixed time for each image."""

    def __init__(self, milliseconds: float) -> None:
        self.seconds = milliseconds / 1000

    def __call__(self, images: Any, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
        import time

        time.sleep(self.seconds * len(prompts))
        return images.mean((1, 2, 3))


ROW = """
import dataclasses, json, sys
from sdpo import Config
from sdpo.commands.bench import bench
found = bench(Config.load("emoji", sys.argv[2:]), int(sys.argv[1]), bare=False)
print(json.dumps(dataclasses.asdict(found)))
"""


def measure(overrides: list[str], repetitions: int) -> dict[str, Any]:
    """Bench a run in a process of its own; returns the fields of the result."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", ROW, str(repetitions), *BASE[1:], *overrides]
    output = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def processes(repetitions: int) -> None:
    """Print the time of an epoch with one process, and with two that share the machine's cores; one thread each."""
    print("\n### Processes on one machine: one thread each, gradients averaged by gloo\n")
    print("| processes | seconds an epoch | speed-up |\n|---|---|---|")
    times: list[float] = []
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "sdpo", "train"]
            overrides = [*BASE, f"epochs={repetitions + 1}", "evaluate.every=0", "evaluate.steps=[1]",
                         "evaluate.images_per_prompt=1", "prompts.unseen=null", "--output-dir", folder]  # fmt: skip
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(
                [sys.executable, *launch, *overrides], check=True, env=environment, stdout=subprocess.DEVNULL
            )
            rows, _ = read_rows(RunDirectory(Path(folder)).metrics)
        times.append((rows[-1]["seconds"] - rows[0]["seconds"]) / (len(rows) - 1))
        print(f"| {count} | {times[-1]:.2f} | {times[0] / times[-1]:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dimensions", nargs="*", help=f"{', '.join([*DIMENSIONS, 'processes'])}; default: all")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.dimensions or [*DIMENSIONS, "processes"]:
        if name == "processes":
            processes(arguments.repetitions)
            continue
        law, rows = DIMENSIONS[name]
        print(f"\n### {law}\n")
        print("| | epoch, s | sample | decode | reward | update | forward + backward | ms each | peak, GB |")
        print("|---|---|---|---|---|---|---|---|---|")
        for label, overrides in rows:
            found = measure(overrides, arguments.repetitions)
            phases, count = found["phases"], found["evaluations"]
            each = 1e3 * (phases["sample"] + phases["update"]) / sum(count.values())
            calls = f"{count['forward']} + {count['backward']}"
            print(
                f"| {label} | {found['epoch']:.2f} | {phases['sample']:.2f} | {phases['decode']:.2f} | "
                f"{phases['reward']:.2f} | {phases['update']:.2f} | {calls} | {each:.1f} | "
                f"{found['peak_bytes'] / 1e9:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
