"""Training one fold: the step, its state, the devices it runs on, checkpoints and metrics."""
