"""A Scorer behind HTTP (`app`, `run`), and the same networks as a model repository of Triton (`triton`)."""
