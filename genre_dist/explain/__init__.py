"""Explanations of predictions: attributions to posters and words, and the worth of each modality."""
