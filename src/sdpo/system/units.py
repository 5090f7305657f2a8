"""Numbers in words."""

from __future__ import annotations


def gigabytes(count: float) -> str:
    """Bytes, in GB or, where they are few, in MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
