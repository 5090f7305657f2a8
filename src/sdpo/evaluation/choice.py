"""The prompts of an evaluation: a fixed choice of a list that is too long to be drawn whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sdpo.method import seeds
from sdpo.prompts import Prompt


def choose(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """Choose at most `limit` prompts, in the order of the list.

    The choice is that of the smallest hashes of the prompts' texts. It depends neither on a run's seed nor on the order
    of the list, and most of it stays when prompts are added.

    Args:
        prompts: the prompts.
        limit: the largest number of prompts; None takes all.
    """
    if limit is None or len(prompts) <= limit:
        return list(prompts)
    seen: Counter[str] = Counter()
    keys = []
    for prompt in prompts:
        keys.append(seeds.derive("evaluated prompt", prompt.text, seen[prompt.text]))
        seen[prompt.text] += 1
    chosen = set(sorted(range(len(prompts)), key=keys.__getitem__)[:limit])
    return [prompt for place, prompt in enumerate(prompts) if place in chosen]
