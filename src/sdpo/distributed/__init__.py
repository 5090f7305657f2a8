"""Several processes: collectives, launches, and networks or optimizers that are sharded."""
