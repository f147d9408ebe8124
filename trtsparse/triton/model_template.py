"""Serves the model beside this file on Triton's Python backend, through a trtsparse.Session.

Written by `trtsparse export-triton`. The Python that the backend uses needs trtsparse: `pip install trtsparse`, with
the extra for the model's engine (rtx, tensorrt or cpu, and cuda on a GPU), or set EXECUTION_ENV_PATH in config.pbtxt.

What the class does: `initialize` opens a session on the file beside this one; `execute` joins the requests that
Triton has put together, runs the session once, and splits the results; a request that fails gets an error of its own.
"""

try:
    from trtsparse.triton.python_backend import TritonPythonModel
except ImportError as error:
    raise ImportError(f"the Python of Triton's Python backend cannot import trtsparse: {error}") from error

__all__ = ["TritonPythonModel"]
