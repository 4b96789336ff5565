"""What runs the networks: one file per engine, and the room for GPU memory. `dgiqa.runtime.session` is the door."""
