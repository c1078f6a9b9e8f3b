"""The language model on ONNX Runtime: its step as a graph, its export, and a model that runs it without PyTorch."""
