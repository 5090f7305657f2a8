"""The settings that may differ between runs that are resumed, or averaged, together."""

from __future__ import annotations

from sdpo.config.differences import RESUMABLE

MAY_DIFFER_WHEN_RESUMED = frozenset(RESUMABLE) - {"evaluate", "stop_when"}
"""Settings that say where a run is trained and what is kept of it: changing them keeps a comparison's run valid."""

MAY_DIFFER_IN_A_GROUP = MAY_DIFFER_WHEN_RESUMED | {"seed", "evaluate"}
"""Settings that may differ between runs that are averaged."""
