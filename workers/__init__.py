"""The compute-node side: what serves a machine, takes deliveries and runs experiments."""
