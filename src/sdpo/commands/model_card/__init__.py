"""The model card of an export: README.md in the format of the Hugging Face hub."""

from __future__ import annotations

from sdpo.commands.model_card.card import render_card
from sdpo.commands.model_card.exported import Exported

__all__ = ["Exported", "render_card"]
