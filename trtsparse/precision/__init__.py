"""Precision: the same network in FP16, BF16 or INT8, and how far its outputs are from the original's.

Everything here runs on a CPU: ONNX Runtime computes the reference and the converted model's outputs.
"""
