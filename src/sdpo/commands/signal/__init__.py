"""`sdpo signal`: how much of a policy gradient is signal, and what other credits make of the same trajectories."""

from sdpo.commands.signal.measurement import measure_signal
from sdpo.commands.signal.output import WRITTEN, paths, save_result, signal_json
from sdpo.commands.signal.recommend import BRANCHING, recommend
from sdpo.commands.signal.result import Options, SignalResult
from sdpo.commands.signal.source import read_words

__all__ = [
    "BRANCHING",
    "WRITTEN",
    "Options",
    "SignalResult",
    "measure_signal",
    "paths",
    "read_words",
    "recommend",
    "save_result",
    "signal_json",
]
