"""Stands in for Triton's TensorRT backend, as backends/tensorrt/model.py: ONNX Runtime runs what model.plan holds.

The server's part is real (configuration, batches, warm-up, statistics, errors); the plan is an ONNX model.
"""

import importlib
import json
from pathlib import Path

import numpy as np


class TritonPythonModel:
    def initialize(self, args):
        onnxruntime = importlib.import_module("onnxruntime")
        self.utils = importlib.import_module("triton_python_backend_utils")
        self.config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"] / "model.plan"
        self.session = onnxruntime.InferenceSession(path.read_bytes()) if path.is_file() else None

    def execute(self, requests):
        names = [entry["name"] for entry in self.config["input"]]
        parts = [[self.utils.get_input_tensor_by_name(r, name).as_numpy() for name in names] for r in requests]
        joined = {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in joined.items())
        self.utils.Logger.log_info(f"stand-in: {self.config['name']}: {len(requests)} requests, {shapes}")
        outputs = [entry["name"] for entry in self.config["output"]]
        results = self.session.run(outputs, joined)
        responses, start = [], 0
        for part in parts:
            end = start + len(part[0])
            tensors = [self.utils.Tensor(n, a[start:end]) for n, a in zip(outputs, results, strict=True)]
            responses.append(self.utils.InferenceResponse(tensors))
            start = end
        return responses
