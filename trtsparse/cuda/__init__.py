"""A GPU as the few CUDA calls that the rest needs: one protocol, and a provider for each Python binding."""
