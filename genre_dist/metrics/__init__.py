"""Metrics of predictions: measures, fitted thresholds, calibration, confidence intervals, and their files."""
