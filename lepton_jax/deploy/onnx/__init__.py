"""Networks as ONNX graphs: export.py makes a file, from what graph.py and operations.py build."""
