"""A small tree of errors. Every message says what was found, what was wanted and what to do about it.

DgiqaError
├── ImageError      an input cannot be read, decoded or used
├── BundleError     a bundle is missing, altered or made for another version
├── BackendError    the backend asked for is not available on this machine
├── EngineError     an engine is missing, stale, or cannot be built
│   └── ParityError a built engine lacks the precision asked for, or its scores are over the budget
└── WeightsError    a checkpoint does not hold the weights that it should
"""


class DgiqaError(Exception):
    """Base of every error this package raises on purpose (wrong arguments raise ValueError)."""


class ImageError(DgiqaError):
    """An input cannot be read, decoded or used as an image."""


class BundleError(DgiqaError):
    """A bundle is missing, altered, or was made for another version."""


class BackendError(DgiqaError):
    """The backend asked for is not installed or cannot run on this machine."""


class EngineError(DgiqaError):
    """An engine is missing from the cache, was made for something else, or cannot be built."""


class ParityError(EngineError):
    """An engine lacks the precision asked for, or its scores are further from the bundle's than allowed."""


class WeightsError(DgiqaError):
    """A checkpoint does not hold the weights that it should."""
