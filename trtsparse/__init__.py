"""trtsparse: from an ONNX model to a TensorRT engine that uses Sparse Tensor Cores."""
