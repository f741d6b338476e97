"""The GPU memory and time of a training step, computed without a GPU from a trace of the step on the meta device."""
