"""A watch over the two loops over steps: sampling, and the accumulation of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from sdpo.loop import rollout as sampler
from sdpo.loop.policy_update import PolicyUpdate


def watch_step_loops(monkeypatch: pytest.MonkeyPatch, context: Callable[[], AbstractContextManager[Any]]) -> list[str]:
    """Make every step of sampling, and the accumulation of every minibatch's gradients, run inside a new context.

    Returns:
        A list that grows by "sampling" or "update" each time the context is entered.
    """
    walk, accumulate, entered = sampler._walk, PolicyUpdate._accumulate, list[str]()

    def watched_walk(*arguments: Any) -> Iterator[Any]:
        steps = walk(*arguments)
        while True:
            with context():
                step = next(steps, None)
            if step is None:
                return
            entered.append("sampling")
            yield step

    def watched_accumulate(*arguments: Any) -> Any:
        entered.append("update")
        with context():
            return accumulate(*arguments)

    monkeypatch.setattr(sampler, "_walk", watched_walk)
    monkeypatch.setattr(PolicyUpdate, "_accumulate", watched_accumulate)
    return entered
