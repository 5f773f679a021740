"""The laboratory: what an encoding of the targets loses (fidelity.py), and what other losses would make of a finished
run's pairs and targets (replay.py, tables.py), without new rollouts."""
