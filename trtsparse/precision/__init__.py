"""Precision: the same network in FP16, BF16 or INT8, and how far its outputs are from the original's.

Everything here runs on a CPU: ONNX Runtime computes the reference and the converted model's outputs.

Read it in this order: specs and feeds (inputs), compare (the error), half (FP16, BF16) with fold, origins, typed and
search, int8 with placement, ranges and quantize.
"""
