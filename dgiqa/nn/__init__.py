"""Networks, their plain definition, training, evaluation and ONNX export; torch is imported here and nowhere else."""
