"""From a model to a plan: one `build` for TensorRT 8.6, 10, 11 and TensorRT-RTX, and a report of what it did."""
