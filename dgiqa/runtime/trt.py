"""A TensorRT plan becomes a session: {name: array} -> {name: array}, arrays on the host or on the device.

One primitive carries it all: a Bound is the network between arrays at fixed places. `run` copies into one and out of
it, `bind` makes one of the caller's arrays. Checked against stand-ins that do the work of a stream as late as they may:
not yet run on a GPU. `plans` finds and loads, `builder.plan` builds.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgiqa.errors import BackendError, EngineError
from dgiqa.runtime import cuda
from dgiqa.runtime.cuda import ALIGNMENT, DeviceArray, Lane, Recent, Replay
from dgiqa.runtime.plans import Log, Shape, as_shape, execution_of, import_tensorrt, load_plan

if TYPE_CHECKING:
    import tensorrt as trt

KEPT = 4  # shapes whose arrays and graphs each stream keeps
_DTYPES = {
    **{"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "UINT8": np.uint8},
    **{"INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_},
}


class TrtSession:
    """A TensorRT plan, ready to run from any thread.

    plan: a file written by build_plan (loading a plan runs its code: only load your own). plugins: libraries it needs.
    device: the GPU's ordinal. streams: runs that can be under way at once. graphs: record a CUDA graph when shapes
    come for the second time. Lives in the CUDA context that is current when it is opened, if that is the device's.
    Raises BackendError without TensorRT or a GPU, EngineError for a plan that does not load here.
    """

    def __init__(
        self,
        plan: str | Path,
        *,
        plugins: Sequence[Path] = (),
        device: int | None = None,
        streams: int = 2,
        graphs: bool = True,
    ) -> None:
        if streams < 1:
            raise ValueError(f"got {streams} streams, wanted at least 1")
        self.backend = f"tensorrt {import_tensorrt().__version__}"
        self.context, self.log, self.graphs = cuda.Context(device), Log(), graphs
        self.engine: trt.ICudaEngine | None = None
        self._streams, self._free = streams, queue.LifoQueue[_Lane]()
        for _ in range(streams):
            self._free.put(_Lane(self.context))
        with self.context.current():
            self.engine = engine = load_plan(Path(plan), plugins, self.log)
            self.tensors = _describe(engine)
        self.inputs = tuple(name for name, tensor in self.tensors.items() if tensor.limits)
        self.outputs = tuple(name for name, tensor in self.tensors.items() if not tensor.limits)

    def run(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, *, stream: Any = None
    ) -> dict[str, Any]:
        """Every output by name, for inputs that are numpy arrays or C-contiguous arrays on the device.

        outputs: arrays on the device to write to, by name; they are ready once `stream` is (an int, or a stream of
        PyCUDA, cuda.core, PyTorch, CuPy), which is waited for before anything is read. All others come as numpy arrays.
        Raises ValueError for wrong names, dtypes, layouts and shapes, BackendError if the engine fails.
        """
        with self._lane() as lane:
            arrays = self.checked(feeds, lane)
            wanted = {name: cuda.as_device_array(array, lane.handle) for name, array in (outputs or {}).items()}
            try:
                if stream is not None:
                    lane.follow(stream)
                shapes = {name: array.shape for name, array in arrays.items()}
                bound: Bound = lane.recent.get_or_make(tuple(shapes.items()), lambda: self._bound_for(shapes, lane))
                bound.check_outputs(wanted)
                for name, array in arrays.items():
                    lane.put(bound.arrays[name], array)
                bound.run()
                for name, array in wanted.items():
                    lane.put(array, bound.arrays[name])
                got = {name: lane.numpy(bound.arrays[name]) for name in self.outputs if name not in wanted}
                if stream is None:
                    lane.sync()
                else:
                    cuda.stream_of(stream).wait(lane.stream)
                return got | wanted
            except BaseException:
                lane.sync()  # what was given may change from here on
                raise

    def bind(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, lane: Lane | None = None
    ) -> Bound:
        """The network between fixed arrays on the device. An output that is not given gets a fresh array.

        lane: where it will run, which others may share, one after the other; by default one of its own. ValueError as
        in run, and for addresses that are not aligned to 256 bytes.
        """
        with self.context.current():
            lane = lane or Lane(self.context)
            given = {name: cuda.as_device_array(array) for name, array in (outputs or {}).items()}
            return Bound(self, lane, self.checked(feeds, lane), given)

    @property
    def most_at_once(self) -> int:
        """The largest batch."""
        return max(high[0] for _, high in self.tensors[self.inputs[0]].limits)

    def close(self) -> None:
        """Wait for what is under way and release all memory, the engine's as well. Further runs raise ValueError."""
        if self.engine is None:
            return
        lanes = [self._free.get() for _ in range(self._streams)]
        with self.context.current():  # contexts before the engine, all of it in the CUDA context it was made in
            for lane in lanes:
                lane.close()
            self.engine = None
        for lane in lanes:
            self._free.put(lane)

    def __enter__(self) -> TrtSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "engine", None) is not None and not sys.is_finalizing():
            with suppress(BackendError):  # the caller may have destroyed the context, and all that was in it
                self.close()

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        lane = self._free.get()
        try:
            if self.engine is None:
                raise ValueError("the session is closed; open it again")
            with self.context.current():
                yield lane
        finally:
            self._free.put(lane)

    def checked(self, feeds: Mapping[str, Any], lane: Lane) -> dict[str, Any]:
        """The inputs, of the right names and types, and if they are on a device, on this one; the lane awaits them."""
        if feeds.keys() != set(self.inputs):
            raise ValueError(f"got inputs {sorted(feeds)}, wanted {sorted(self.inputs)}")
        arrays = {}
        for name in self.inputs:
            array = feeds[name]
            if cuda.is_device_array(array):
                array = cuda.as_device_array(array, lane.handle)
                cuda.check_home(array.pointer, self.context)
                if array.stream is not None:
                    lane.follow(array.stream)
            elif not isinstance(array, np.ndarray):
                kind = type(array).__name__
                raise ValueError(f"input {name!r} is {kind}, wanted a numpy array or an array on the device")
            if array.dtype != self.tensors[name].dtype:
                raise ValueError(f"{name!r} is {array.dtype}, wanted {self.tensors[name].dtype}")
            arrays[name] = array
        return arrays

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The first profile that takes these shapes together. ValueError if there is none."""
        profiles = range(len(self.tensors[self.inputs[0]].limits))
        for profile in profiles:
            if all(_fits(shape, self.tensors[name].limits[profile]) for name, shape in shapes.items()):
                return profile
        limits = [{name: self.tensors[name].limits[profile] for name in shapes} for profile in profiles]
        taken = (", ".join(f"{name!r} {low} to {high}" for name, (low, high) in each.items()) for each in limits)
        got = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"got shapes {got}; this plan takes {', or '.join(taken)}; build one for it: dgiqa-rt build "
            "with --batch or --depth"
        )

    def expect(self, done: Any, what: str) -> None:
        """BackendError, in TensorRT's own words, unless it did what it was to do."""
        if not done:
            raise BackendError(f"{self.backend} {what}: {self.log.text()}")

    def _bound_for(self, shapes: Mapping[str, Shape], lane: Lane) -> Bound:
        self.profile_for(shapes)  # before memory is taken
        return Bound(self, lane, {n: lane.empty(shape, self.tensors[n].dtype) for n, shape in shapes.items()}, {})


class Bound:
    """Inputs and outputs at fixed places on the device, and the network between them. Made by TrtSession.bind.

    arrays: by name. What computes is the memory of its lane, which all that runs there shares.
    """

    def __init__(
        self, session: TrtSession, lane: Lane, feeds: Mapping[str, DeviceArray], given: Mapping[str, DeviceArray]
    ) -> None:
        assert session.engine is not None
        self._lane, self._session, self._replay = lane, session, Replay(lane, record=session.graphs)
        profile = session.profile_for({name: array.shape for name, array in feeds.items()})
        self._execution: trt.IExecutionContext | None = execution_of(session.engine, session.log)
        execution = self._execution
        if profile:
            session.expect(execution.set_optimization_profile_async(profile, lane.handle), "refused a profile")
        for name, array in feeds.items():
            done = execution.set_input_shape(name, array.shape)
            session.expect(done, f"refused shape {array.shape} of {name!r}")
        self._made = {name: as_shape(execution.get_tensor_shape(name)) for name in session.outputs}
        self.check_outputs(given)
        fresh = {n: lane.empty(s, session.tensors[n].dtype) for n, s in self._made.items() if n not in given}
        self.arrays = {**feeds, **fresh, **given}
        if odd := [name for name, array in self.arrays.items() if array.pointer % ALIGNMENT]:
            raise ValueError(f"{odd} lie at addresses that are no multiples of {ALIGNMENT} bytes; copy them first")
        for name, array in self.arrays.items():
            session.expect(execution.set_tensor_address(name, array.pointer), f"refused the address of {name!r}")
        self._need, self._at = int(execution.update_device_memory_size_for_shapes()), 0
        lane.scratch(self._need)  # it may move, so this comes before any recording

    def check_outputs(self, given: Mapping[str, DeviceArray]) -> None:
        """ValueError unless these can be written to."""
        for name, array in given.items():
            if name not in self._made:
                raise ValueError(f"output {name!r} is {array.dtype} {array.shape}, wanted one of {tuple(self._made)}")
            wanted = self._session.tensors[name].dtype, self._made[name]
            if (array.dtype, array.shape) != wanted:
                raise ValueError(f"output {name!r} is {array.dtype} {array.shape}, wanted {' '.join(map(str, wanted))}")
            cuda.check_home(array.pointer, self._session.context)

    def run(self) -> None:
        """Put one run on the lane: plainly at first, recorded the second time, replayed from then on."""
        self._replay(self.put)

    def put(self) -> None:
        """Put one plain run on the lane: what a graph of one's own records.

        TensorRT wants to have run once before it is recorded.
        """
        if self._execution is None:
            raise ValueError("this binding is closed; bind the arrays again")
        if self._at != self._lane.at:  # something larger came, and the memory moved
            self._execution.set_device_memory(self._lane.at, self._need)
            self._at = self._lane.at
        self._session.expect(self._execution.execute_async_v3(self._lane.handle), "did not run")

    def close(self) -> None:
        """Release the graph and the execution context, once what was put on the lane is done."""
        if self._execution is not None:
            with self._session.context.current():
                self._lane.sync()
                self._replay.close()
                self._execution, self.arrays = None, {}

    def __del__(self) -> None:
        if getattr(self, "_execution", None) is not None and not sys.is_finalizing():
            with suppress(BackendError):  # as in TrtSession
                self.close()


class _Lane(Lane):
    """A lane of a session's own, with the networks bound to it for the shapes that came last."""

    def __init__(self, context: cuda.Context) -> None:
        super().__init__(context)
        self.recent = Recent(KEPT)

    def close(self) -> None:
        self.recent.close()
        super().close()


@dataclass(frozen=True)
class _Tensor:
    """An input or output of an engine. limits: an input's smallest and largest shape in each profile."""

    dtype: np.dtype[Any]
    limits: tuple[tuple[Shape, Shape], ...] = ()


def _fits(shape: Shape, limits: tuple[Shape, Shape]) -> bool:
    low, high = limits
    return len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))


def _describe(engine: trt.ICudaEngine) -> dict[str, _Tensor]:
    """Inputs and outputs by name."""
    import tensorrt as trt

    tensors = {}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        kind = engine.get_tensor_dtype(name).name
        if kind not in _DTYPES or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise EngineError(f"{name!r} is a {kind} that numpy lacks or a shape kept on the host; keep such inside")
        limits: tuple[tuple[Shape, Shape], ...] = ()
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            shape, profiles = as_shape(engine.get_tensor_shape(name)), range(engine.num_optimization_profiles)
            found = [engine.get_tensor_profile_shape(name, i) for i in profiles] if -1 in shape else []
            # a network of fixed shapes need not have a profile
            limits = tuple((as_shape(s[0]), as_shape(s[2])) for s in found) or ((shape, shape),) * max(1, len(profiles))
        tensors[name] = _Tensor(np.dtype(_DTYPES[kind]), limits)
    return tensors
