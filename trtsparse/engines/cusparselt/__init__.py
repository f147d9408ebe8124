"""ONNX models on any NVIDIA GPU since Ampere, without TensorRT: cuSPARSELt and cuBLASLt kernels, the rest PyTorch."""
