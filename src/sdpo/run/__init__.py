"""A run's directory: checkpoints, metrics, trackers, and the record of its result."""
