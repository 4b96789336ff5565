"""Every call of dgiqa.runtime.cuda through the real cuda-python and the driver of libcuda.c -> one line of JSON."""

from __future__ import annotations

import ctypes
import gc
import json

import numpy as np

from dgiqa.errors import BackendError
from dgiqa.runtime import cuda


def exercise() -> dict[str, object]:
    context = cuda.Context()
    found: dict[str, object] = {
        "gpu": context.gpu,
        "capability": context.compute_capability,
        "driver": cuda.driver_version(),
    }
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    with context.current(), cuda.Stream(context) as stream, cuda.Event(context) as event:
        pinned, back = cuda.PinnedBuffer(context, data.nbytes), cuda.PinnedBuffer(context, data.nbytes)
        pinned.array(data.shape, data.dtype)[:] = data
        source, target = (cuda.empty(context, data.shape, data.dtype, int(stream)) for _ in range(2))

        def enqueue() -> None:
            cuda.copy_in(source.pointer, pinned, data.nbytes, int(stream))
            cuda.copy_within(target.pointer, source.pointer, data.nbytes, int(stream))
            cuda.copy_out(back, target.pointer, data.nbytes, int(stream))

        enqueue()
        event.record(int(stream))
        event.wait()
        cuda.follow(int(stream), event)
        cuda.synchronize(int(stream))
        found["copied"] = bool((back.array(data.shape, data.dtype) == data).all() and (target.numpy() == data).all())
        with cuda.Graph(stream, enqueue) as graph:
            pinned.array(data.shape, data.dtype)[:] = -data
            found["recorded_only"] = bool((target.numpy() == data).all())
            graph.launch(int(stream))
            found["replayed"] = bool((target.numpy() == -data).all())
        cuda.check_home(cuda.as_device_array(target), context)
        found["free"] = cuda.free_memory()
    try:
        cuda.DeviceBuffer(context, 1 << 40)
    except BackendError as error:
        found["error"] = str(error)
    return found


def main() -> None:
    found = exercise()
    gc.collect()
    print(json.dumps({**found, "alive": ctypes.CDLL("libcuda.so.1").dgiqa_test_alive()}))


if __name__ == "__main__":
    main()
