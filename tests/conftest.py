"""Settings that hold for every test."""

import hypothesis

# examples are few and varied: the suite must stay quick on one core
hypothesis.settings.register_profile("trtsparse", deadline=None, max_examples=40, database=None)
hypothesis.settings.load_profile("trtsparse")
