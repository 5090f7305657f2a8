"""The cost and the memory of a run, estimated before a model is loaded."""
