"""The warnings that a report leads with: monitors and judges that fell far below the base model's."""

from __future__ import annotations

from sdpo.report.formatting import percent, step_label
from sdpo.report.reader import Run
from sdpo.report.stats import before_and_after

_FALL = 0.2
"""The share by which a monitor must fall to be warned of."""

_WATCHED = {
    "diversity": "the difference between images of one prompt (diversity)",
    "palette": "the spread of background colours (palette)",
    "edge_density": "the edge density",
    "entropy": "the entropy of brightness",
}


def collapse_warnings(run: Run) -> list[str]:
    """Return a sentence for each monitor and judge that fell; none where nothing fell or was measured."""
    base, tuned = run.base, run.tuned
    if base is None or tuned is None:
        return []
    found = []
    if base.monitored == tuned.monitored:
        for name, words in _WATCHED.items():
            before, after = base.monitors.get(name, {}), tuned.monitors.get(name, {})
            falls = {s: 1 - after[s] / before[s] for s in after if before.get(s, 0) > 0}
            fallen = {steps: share for steps, share in falls.items() if share >= _FALL}
            if fallen:
                listed = ", ".join(
                    f"{percent(share)} at {step_label(steps)}" for steps, share in sorted(fallen.items())
                )
                found.append(f"{words} fell below the base model's by {listed}: the images have become more alike")
    for name in sorted(run.judges):
        gains = [(row.steps, row.gain) for row in before_and_after(run, name) if row.gain is not None]
        fell = [step_label(steps) for steps, gain in gains if gain.significant and gain.mean < 0]
        if fell:
            found.append(f"the judge {name} recognises fewer images than before at {', '.join(fell)}")
    return found
