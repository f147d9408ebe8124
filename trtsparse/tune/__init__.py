"""Measuring dense against sparse matrix products on the GPU at hand, in a process that a bad kernel may kill."""
