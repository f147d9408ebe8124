"""What pytest leaves alone where an optional library is missing."""

import importlib.util

# the doctests of trtsparse.torch import PyTorch
collect_ignore = [] if importlib.util.find_spec("torch") else ["trtsparse/torch"]
