"""Every call of dgiqa.runtime.cuda through the real cuda-python and the driver of libcuda.c -> one line of JSON."""

from __future__ import annotations

import ctypes
import gc
import json

import numpy as np

from dgiqa.errors import BackendError
from dgiqa.runtime import cuda


class Foreign:
    """An array of another library."""

    def __init__(self, array: cuda.DeviceArray, strides: tuple[int, ...] | None = None) -> None:
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, "strides": strides}


class Exporter:
    """A DLPack producer that holds host memory, as the stand-in's device does."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.asked = array, []  # type: ignore[var-annotated]

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None, **options: object) -> object:
        self.asked.append(stream)
        return self.array.__dlpack__()


def exercise() -> dict[str, object]:
    context = cuda.Context()
    found: dict[str, object] = {
        "gpu": context.gpu,
        "capability": context.compute_capability,
        "device": context.device,
        "primary": context.primary,
        "driver": cuda.driver("cuDriverGetVersion"),
    }
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    lane, other = cuda.Lane(context), cuda.Lane(context)
    with context.current():
        source, target = (lane.empty(data.shape, data.dtype) for _ in range(2))
        replayed = []
        for turn in range(3):
            lane.put(source, data + turn)
            lane.replay(exercise, lambda: lane.copy(target.pointer, source.pointer, source.nbytes))
            replayed.append(bool((lane.numpy(target) == data + turn).all()))
        found |= {"replayed": replayed, "recorded": bool(lane.graphs[exercise])}
        other.follow(lane.stream)
        lane.follow(other.handle)
        lane.follow(0)
        places = []
        for nbytes in (100, 10_000, 50):
            lane.scratch(nbytes)
            places.append(lane.at)
        found["moved"] = (places[0] != 0, places[1] != places[0], places[2] == places[1])
        lane.graphs[main] = None  # as if it had been put there once
        try:
            lane.replay(main, lambda: 1 // 0)  # type: ignore[arg-type, return-value]
        except ZeroDivisionError:
            found["not_recorded"] = not lane.graphs[main]
        lane.take(Foreign(target))
        rows = cuda.view_of(Foreign(target, (16, -4)))
        exporter = Exporter(np.zeros((4, 6, 3), np.uint8)[:, :, :2])
        shared = cuda.view_of(exporter, lane.stream)
        found["views"] = [rows.strides, shared.shape, shared.strides, exporter.asked == [lane.handle]]
        found["free"] = cuda.driver("cuMemGetInfo")[0]
        try:
            lane.empty((1 << 40,), np.uint8)
        except BackendError as error:
            found["error"] = str(error)
        lane.close()
        other.close()
    return found


def main() -> None:
    found = exercise()
    gc.collect()
    print(json.dumps({**found, "alive": ctypes.CDLL("libcuda.so.1").dgiqa_test_alive() - 1}))  # the primary context


if __name__ == "__main__":
    main()
