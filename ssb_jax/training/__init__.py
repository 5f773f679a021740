"""What a training step consists of: where examples lie in a batch (layout.py, batches.py), and the step (step.py)."""
