"""The codec on ONNX Runtime: its steps as graphs, their export, and a codec that runs them."""
