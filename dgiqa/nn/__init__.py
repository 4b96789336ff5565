"""Networks, their plain definition, training, evaluation and ONNX export. Only this package imports torch."""
