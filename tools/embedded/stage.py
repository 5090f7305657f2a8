"""A resumable training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


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
