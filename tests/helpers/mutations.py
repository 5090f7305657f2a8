"""Seeded damage: to bytes as a broken disk or a hasty editor does it, and to settings as a mistaken user does."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 20  # an input that takes longer hangs
DAMAGES = ("cut", "flipped", "missing", "emptied")

WEIRD: list[Any] = [
    None, True, -1, 0, 10**30, 10**400, 1e308, -0.0, float("nan"), float("inf"), "", " ", "\0", "ÿ" * 6000, "🦊", b"",
    "[/red]", "<script>alert(1)</script>", "../../etc/passwd", "/dev/zero", "/", ".", "~", "2024-13-45", "%s {0} {x}",
    "no.such:thing", [], {}, [[]], [None], {"": ""}, {"a": {"b": {"c": []}}}, {1: 2}, {None: None}, [1, "two", 3.0],
]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes after a random fault: truncated, with flipped bits, or with parts removed, repeated or overwritten."""
    kind, at = rng.randrange(7), rng.randrange(max(1, len(data)))
    size = rng.randint(1, max(1, min(64, len(data))))
    if kind == 0:
        return data[:at]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 8, 64])):
            if flipped:
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 2:
        return data[:at] + rng.randbytes(size) + data[at + size :]
    if kind == 3:
        return data[:at] + data[at + size :]
    if kind == 4:
        return data[:at] + data[at : at + size] * rng.choice([2, 50]) + data[at + size :]
    if kind == 5:
        lines = data.splitlines(keepends=True)
        rng.shuffle(lines)
        return b"".join(lines)
    return data + rng.randbytes(size)


def damage_file(file: Path, how: str) -> None:
    """Cut a file, flip one of its bits, empty it, or delete it.

    Args:
        file: the file.
        how: one of `DAMAGES`.
    """
    content = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(content[:20])
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "emptied":
        file.write_bytes(b"")
    else:
        file.unlink()


def unsettle(tree: Any, rng: random.Random) -> Any:
    """The mapping with a value replaced, or a key renamed, added or lost, at a random depth; it is changed in place."""
    holders = [holder for holder in _holders(tree) if len(holder)]
    holder = rng.choice(holders)
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    kind = rng.randrange(5)
    if kind == 0 and isinstance(holder, dict):
        holder[str(key) + rng.choice(["s", "_", "\n", ""])] = holder.pop(key)
    elif kind == 1:
        del holder[key]
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice(["", "x", "name", "path", 3, None])] = rng.choice(WEIRD)
    else:
        holder[key] = rng.choice(WEIRD)
    return tree


def _holders(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list):
        yield tree
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from _holders(inner)


@contextlib.contextmanager
def time_limit(what: str) -> Iterator[None]:
    """Fail where the body hangs."""

    def late(*arguments: object) -> None:
        raise AssertionError(f"{what}: no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
