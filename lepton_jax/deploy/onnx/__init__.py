"""Networks as ONNX graphs: export.py makes a file, whose graph.py is what walk.py fills.

operations.py has the table of operations, of which the modules beside it each register some;
operators.py the layers that ONNX knows as a whole.
"""
