"""Runs the networks: one module per engine, and one for GPU memory. Start at `dgiqa.runtime.session`."""
