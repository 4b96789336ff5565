"""What runs the networks: one file per engine, and the room for GPU memory. `dgiqa.sessions` is the door."""
