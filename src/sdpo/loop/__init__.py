"""A training epoch: batches, rollout, scoring, and the shuffled update, on one process's devices."""
