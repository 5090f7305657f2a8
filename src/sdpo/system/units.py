"""Numbers with units, for messages."""

from __future__ import annotations


def gigabytes(count: float) -> str:
    """A number of bytes as text, in GB, or in MB below 10 MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
