"""Everything that imports torch: the networks, their references, training, evaluation, ONNX export."""
