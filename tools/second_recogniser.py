"""Trains a second recogniser of the embedded model's animals, which no run sees, and offers it as a reward.

    python tools/second_recogniser.py              # trains it, a few minutes
    PYTHONPATH=tools sdpo evaluate runs/demo --reward second_recogniser:SecondRecogniser

The judge in the package is a ResNet that was trained on mixed images. This one is a plain convolutional network without
shortcuts, of another seed, trained on other backgrounds and kinds of damage: what fools both is less likely. Needs the
font file of `tools/build_embedded.py`. The weights are written to `build/`, and are not part of the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "build" / "second_recogniser.pt"
_VAE = ROOT / "src" / "sdpo" / "assets" / "emoji" / "model" / "vae"


def new_network(classes: int) -> nn.Module:
    """A stack of strided and plain convolutions, and the mean over places."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 96, 128):
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.GELU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class SecondRecogniser:
    """Scores 1 where the network gives the prompt's animal a probability above 1/2, else 0.

    Raises:
        FileNotFoundError: if the network has not been trained.
    """

    def __init__(self) -> None:
        if not WEIGHTS.exists():
            raise FileNotFoundError(f"{WEIGHTS} does not exist: train it by python tools/second_recogniser.py")
        state = torch.load(WEIGHTS, weights_only=True)
        self._labels = {name: i for i, name in enumerate(state["animals"])}
        self._network = new_network(len(self._labels)).eval()
        self._network.load_state_dict(state["network"])

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Recognise the animal of each prompt.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: N prompts; one that names none of the animals scores 0.
            metadata: ignored.

        Returns:
            0 or 1, float32 [N].
        """
        probability = self._network.to(images.device)(images.float() * 2 - 1).softmax(-1)
        labels = [
            next((self._labels[word] for word in prompt.split() if word in self._labels), -1) for prompt in prompts
        ]
        wanted = torch.tensor(labels, device=images.device)
        right = probability.gather(1, wanted.clamp(min=0)[:, None])[:, 0]
        return ((right > 0.5) & (wanted >= 0)).float()


def train(updates: int, images: int) -> None:
    """Train on composed images, and on what the embedded decoder makes of them, with several kinds of damage."""
    from diffusers import AutoencoderTiny
    from embedded.composer import ANIMALS, Composer, to_unit
    from embedded.damage import blur, decode, encode_all

    torch.manual_seed(77)
    drawn = Composer().dataset(images, seed=4711)
    data, labels = drawn.images, torch.from_numpy(drawn.animals).long()
    vae = AutoencoderTiny.from_pretrained(_VAE, torch_dtype=torch.float32)
    decoded = (decode(vae, encode_all(vae, data)) * 255).round().to(torch.uint8)
    network = new_network(len(ANIMALS))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=updates)
    for update in range(1, updates + 1):
        generator = torch.Generator().manual_seed(update)
        index = torch.randint(len(data), (64,), generator=generator)
        draw = torch.rand(64, 5, 1, 1, 1, generator=generator)
        x = torch.where(draw[:, 0] < 0.5, to_unit(data[index]), to_unit(decoded[index]))
        x = torch.where(draw[:, 1] < 0.5, x.flip(-1), x)
        tint = 1 + 0.3 * (torch.rand(64, 3, 1, 1, generator=generator) - 0.5)
        x = (x * tint + 0.08 * draw[:, 2] * torch.randn(x.shape, generator=generator)).clamp(0, 1)
        if update % 3 == 0:
            x = blur(x, 0.4 + 1.2 * float(draw[0, 3]))
        loss = F.cross_entropy(network(x * 2 - 1), labels[index], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if update % 100 == 0:
            print(f"{update}/{updates} loss {loss.item():.3f}", flush=True)
    WEIGHTS.parent.mkdir(exist_ok=True)
    torch.save({"network": network.state_dict(), "animals": list(ANIMALS)}, WEIGHTS)
    print(f"wrote {WEIGHTS}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=1200)
    parser.add_argument("--images", type=int, default=45 * 150)
    arguments = parser.parse_args()
    train(arguments.updates, arguments.images)
