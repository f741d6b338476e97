"""What predictions are worth: measures, fitted thresholds, calibration, intervals, and their files."""
