"""The command line."""

from sdpo.cli.main import main

__all__ = ["main"]
