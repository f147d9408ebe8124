"""Runtime: what an application holds while it runs a model."""
