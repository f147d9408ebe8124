"""Sparsity: where a model's weights are, whether they are N:M sparse, and making them so.

Needs numpy and onnx only. Read it in this order: pattern (arithmetic on arrays), weights (sites in a graph),
validate, prune.
"""
