"""What a training step needs of a GPU's memory, found without a GPU: the step is run on the meta device and counted."""
