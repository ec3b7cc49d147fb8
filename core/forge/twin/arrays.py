"""The arrays that the twin's modules hand each other."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Array = NDArray[np.generic]
