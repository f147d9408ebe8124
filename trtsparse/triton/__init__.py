"""Triton Inference Server: model repositories of plans and models, and checks of what Triton itself does not find."""
