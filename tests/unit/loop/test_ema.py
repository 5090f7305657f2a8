"""The moving average of the weights."""

from __future__ import annotations

import torch

from sdpo.loop.ema import EMA


def test_the_average_follows_the_weights_and_stands_in_for_them() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    ema = EMA([parameter], decay=0.9)
    expected = torch.zeros(3)
    for n in range(1, 200):
        with torch.no_grad():
            parameter += 1
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * parameter.detach()
    assert torch.allclose(ema.average[0], expected)
    with ema.applied():
        assert torch.equal(parameter, ema.average[0])
    assert torch.equal(parameter, torch.full((3,), 199.0))


def test_without_a_warm_up_the_start_keeps_its_share() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    ema = EMA([parameter], decay=0.95, warmup=False)
    with torch.no_grad():
        parameter += 1
    for _ in range(48):
        ema.update()
    assert torch.allclose(ema.average[0], torch.full((3,), 1 - 0.95**48))
