"""Several processes: what a launch asks for, collectives, and networks and optimizers sharded over ranks."""
