"""The files of a run: the layout of its directory, checkpoints, metrics, trackers, and the result."""
