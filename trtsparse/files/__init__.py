"""Files: written whole or not at all, and ONNX models whose weights stay where they are until asked for."""
