"""Keep accuracy: prune with calibration data, permute channels, find the layers to leave dense. No training."""
