"""Arrays of numpy by the type of their numbers. Their shapes stand where they are taken and given."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Floating = NDArray[np.floating[Any]]
Index = NDArray[np.intp]
Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]
