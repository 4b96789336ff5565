"""A TensorRT plan becomes a session: {name: array} -> {name: array}, arrays on the host or on the device.

One primitive carries it all: a Bound is the network between arrays at fixed places. `run` copies into one and out of
it, `bind` makes one of the caller's arrays. Checked against stand-ins that do the work of a stream as late as they may:
not yet run on a GPU. `plans` finds and loads, `builder.plan` builds.
"""

from __future__ import annotations

import queue
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from dgiqa.errors import BackendError, EngineError
from dgiqa.runtime import cuda
from dgiqa.runtime.cuda import ALIGNMENT, DeviceArray, Lane, Replay
from dgiqa.runtime.plans import Log, Shape, as_shape, import_tensorrt, load_plan

if TYPE_CHECKING:
    import tensorrt as trt

KEPT = 4  # shapes whose arrays and graphs each stream keeps
_DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
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
        self._streams, self._lanes = streams, list[_Lane]()
        self._free: queue.LifoQueue[_Lane | None] = queue.LifoQueue()
        for _ in range(streams):
            self._free.put(None)  # a lane that nobody needed yet
        self.engine: trt.ICudaEngine | None = None
        with self.context.current():
            self.engine = engine = load_plan(Path(plan), plugins, self.log)
            self.tensors = _describe(engine)
        self.inputs = tuple(name for name, tensor in self.tensors.items() if tensor.is_input)
        self.outputs = tuple(name for name, tensor in self.tensors.items() if not tensor.is_input)

    def run(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, *, stream: Any = None
    ) -> dict[str, Any]:
        """Every output by name, for inputs that are numpy arrays or C-contiguous arrays on the device.

        outputs: arrays on the device to write to, by name; they are ready once `stream` is (an int, or a stream of
        PyCUDA, cuda.core, PyTorch, CuPy), which is waited for before anything is read. All others come as numpy arrays.
        Raises ValueError for wrong names, dtypes, layouts and shapes, BackendError if the engine fails.
        """
        with self._lane() as lane, self.context.current():
            arrays = {name: self._checked(name, feed, lane) for name, feed in self._named(feeds).items()}
            wanted = {name: cuda.as_device_array(array, lane.handle) for name, array in (outputs or {}).items()}
            try:
                if stream is not None:
                    lane.follow(stream)
                bound = lane.bound(self, {name: array.shape for name, array in arrays.items()})
                self._check_outputs(wanted, bound.arrays)
                for name, array in arrays.items():
                    lane.put(bound.arrays[name], array)
                bound.run()
                for name, array in wanted.items():
                    lane.put(array, bound.arrays[name])
                if stream is not None and wanted:
                    cuda.stream_of(stream).wait(lane.stream)
                got = {name: lane.get(bound.arrays[name]) for name in self.outputs if name not in wanted}
                return got | wanted
            finally:  # what was given may change from here on, whatever happened
                if not wanted or sys.exc_info()[0] or stream is None:
                    lane.sync()

    def bind(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, lane: Lane | None = None
    ) -> Bound:
        """The network between fixed arrays on the device. An output that is not given gets a fresh array.

        lane: where it will run, which others may share, one after the other; by default one of its own. ValueError as
        in run, and for addresses that are not aligned to 256 bytes.
        """
        with self.context.current():
            lane = lane or Lane(self.context)
            arrays = {name: self._checked(name, feed, lane) for name, feed in self._named(feeds).items()}
            given = {name: cuda.as_device_array(array) for name, array in (outputs or {}).items()}
            return Bound(self, lane, arrays, given)

    def close(self) -> None:
        """Wait for what is under way and release all memory, the engine's as well. Further runs raise ValueError."""
        if self.engine is None:
            return
        for _ in range(self._streams):
            self._free.get()
        with self.context.current():  # contexts before the engine, all of it in the CUDA context it was made in
            lanes, self._lanes = self._lanes, []
            for lane in lanes:
                lane.close()
            del lanes
            self.engine = None
        for _ in range(self._streams):
            self._free.put(None)

    def __enter__(self) -> TrtSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
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
            if lane is None:
                lane = _Lane(self.context)
                self._lanes.append(lane)
            yield lane
        finally:
            self._free.put(lane)

    def _named(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        if feeds.keys() != set(self.inputs):
            raise ValueError(f"got inputs {sorted(feeds)}, wanted {sorted(self.inputs)}")
        return feeds

    def _checked(self, name: str, feed: Any, lane: Lane) -> Any:
        """The array, of the right type, within the profile, and if it is on a device, on this one."""
        tensor, array = self.tensors[name], feed
        if cuda.is_device_array(feed):
            array = cuda.as_device_array(feed, lane.handle)
            cuda.check_home(array, self.context)
            if array.stream is not None:
                lane.follow(array.stream)
        elif not isinstance(feed, np.ndarray):
            raise ValueError(f"input {name!r} is {type(feed).__name__}, wanted a numpy array or an array on the device")
        if array.dtype != tensor.dtype:
            raise ValueError(f"{name!r} is {array.dtype}, wanted {tensor.dtype}")
        if not any(_fits(array.shape, limits) for limits in tensor.limits):
            taken = " or ".join(f"{low} to {high}" for low, high in tensor.limits)
            raise ValueError(
                f"input {name!r} has shape {array.shape}, this plan takes {taken}; build one for it: dgiqa-rt build "
                "with --batch or --depth"
            )
        return array

    def profile_for(self, feeds: Mapping[str, DeviceArray]) -> int:
        """The first profile that takes all of these shapes together."""
        profiles = range(len(self.tensors[self.inputs[0]].limits))
        fits = (all(_fits(a.shape, self.tensors[name].limits[i]) for name, a in feeds.items()) for i in profiles)
        found = next((i for i, fitting in enumerate(fits) if fitting), None)
        if found is None:
            raise ValueError(f"no profile of this plan takes { ({n: a.shape for n, a in feeds.items()}) } together")
        return found

    @property
    def most_at_once(self) -> int:
        """The largest batch."""
        return max(high[0] for _, high in self.tensors[self.inputs[0]].limits)

    def _check_outputs(self, given: Mapping[str, DeviceArray], made: Mapping[str, DeviceArray]) -> None:
        for name, array in given.items():
            if name not in self.outputs or (array.dtype, array.shape) != (made[name].dtype, made[name].shape):
                wanted = f"{made[name].dtype} {made[name].shape}" if name in self.outputs else f"one of {self.outputs}"
                raise ValueError(f"output {name!r} is {array.dtype} {array.shape}, wanted {wanted}")
            cuda.check_home(array, self.context)


class Bound:
    """Inputs and outputs at fixed places on the device, and the network between them. Made by TrtSession.bind.

    arrays: by name. What computes is the memory of its lane, which all that runs there shares.
    """

    def __init__(
        self, session: TrtSession, lane: Lane, feeds: Mapping[str, DeviceArray], given: Mapping[str, DeviceArray]
    ) -> None:
        import tensorrt as trt

        assert session.engine is not None
        self._lane, self._session = lane, session
        execution = session.engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if execution is None:
            raise BackendError(f"{session.backend} made no execution context: {session.log.text()}")
        self._execution: trt.IExecutionContext | None = execution
        execution.nvtx_verbosity = trt.ProfilingVerbosity.NONE
        profile = session.profile_for(feeds)
        if profile and not execution.set_optimization_profile_async(profile, lane.handle):
            raise BackendError(f"{session.backend} refused profile {profile}: {session.log.text()}")
        for name, array in feeds.items():
            if not execution.set_input_shape(name, array.shape):
                raise BackendError(f"{session.backend} refused shape {array.shape} of {name!r}: {session.log.text()}")
        made = {name: as_shape(execution.get_tensor_shape(name)) for name in session.outputs}
        fresh = {n: lane.empty(made[n], session.tensors[n].dtype) for n in session.outputs if n not in given}
        self.arrays = {**feeds, **fresh, **given}
        wanted = {n: DeviceArray(0, shape, session.tensors[n].dtype) for n, shape in made.items()}
        session._check_outputs(given, wanted)
        if odd := [name for name, array in self.arrays.items() if array.pointer % ALIGNMENT]:
            raise ValueError(f"{odd} lie at addresses that are no multiples of {ALIGNMENT} bytes; copy them first")
        for name, array in self.arrays.items():
            if not execution.set_tensor_address(name, array.pointer):
                raise BackendError(f"{session.backend} refused the address of {name!r}: {session.log.text()}")
        self._need = int(execution.update_device_memory_size_for_shapes())
        self._at = -1
        self._replay = Replay(lane, self.put, record=session.graphs)
        self.prepare()

    def prepare(self) -> None:
        """Have the lane hold as much memory as this needs. It may move there, so this comes before any recording."""
        if self._execution is None:
            raise ValueError("this binding is closed; bind the arrays again")
        if (at := self._lane.scratch(self._need)) != self._at:
            self._execution.set_device_memory(at, self._need)
            self._at = at

    def run(self) -> None:
        """Put one run on the lane: plainly at first, recorded the second time, replayed from then on."""
        self.prepare()
        self._replay()

    def put(self, stream: Any = None) -> None:
        """Put one plain run on a stream, by default the lane's; what a graph of one's own records.

        TensorRT wants to have run once before it is recorded.
        """
        self.prepare()
        assert self._execution is not None
        if not self._execution.execute_async_v3(self._lane.handle if stream is None else cuda.stream_handle(stream)):
            raise BackendError(f"{self._session.backend} did not run: {self._session.log.text()}")

    def close(self) -> None:
        """Release the graph and the execution context, once what was put on the lane is done."""
        if self._execution is not None:
            with self._session.context.current():
                self._lane.sync()
                self._replay.close()
                self._execution, self.arrays = None, {}
                del self._replay  # which refers to this


class _Lane(Lane):
    """A lane of a session's own, with the networks bound to it for the shapes that came last."""

    def __init__(self, context: cuda.Context) -> None:
        super().__init__(context)
        self._bounds: OrderedDict[Any, Bound] = OrderedDict()

    def bound(self, session: TrtSession, shapes: dict[str, Shape]) -> Bound:
        key = tuple(sorted(shapes.items()))
        if key not in self._bounds:
            while len(self._bounds) >= KEPT:
                self._bounds.popitem(last=False)[1].close()
            feeds = {name: self.empty(shape, session.tensors[name].dtype) for name, shape in shapes.items()}
            self._bounds[key] = Bound(session, self, feeds, {})
        self._bounds.move_to_end(key)
        return self._bounds[key]

    def put(self, target: DeviceArray, source: Any) -> None:
        """Copy an array of the host or the device into one of the device."""
        if isinstance(source, DeviceArray):
            self.copy(target.pointer, source.pointer, source.nbytes)
        else:
            self.upload(target.pointer, source)

    def get(self, source: DeviceArray) -> Any:
        return self.download(source.pointer, source.nbytes).view(source.dtype).reshape(source.shape)

    def close(self) -> None:
        while self._bounds:
            self._bounds.popitem()[1].close()
        super().close()


@dataclass(frozen=True)
class _Tensor:
    """An input or output of an engine. limits: an input's smallest and largest shape in each profile."""

    dtype: np.dtype[Any]
    is_input: bool
    limits: tuple[tuple[Shape, Shape], ...] = ()


def _fits(shape: Shape, limits: tuple[Shape, Shape]) -> bool:
    low, high = limits
    return len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))


def _limits(engine: trt.ICudaEngine, name: str) -> tuple[tuple[Shape, Shape], ...]:
    """Of an input, in each profile; a network of fixed shapes need not have a profile."""
    shape = as_shape(engine.get_tensor_shape(name))
    profiles: int = engine.num_optimization_profiles
    if -1 not in shape:
        return ((shape, shape),) * max(1, profiles)
    found: list[tuple[Shape, Shape]] = []
    for profile in range(profiles):
        smallest, _, largest = engine.get_tensor_profile_shape(name, profile)
        found.append((as_shape(smallest), as_shape(largest)))
    return tuple(found)


def _describe(engine: trt.ICudaEngine) -> dict[str, _Tensor]:
    """Inputs and outputs by name."""
    import tensorrt as trt

    tensors = {}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        kind = engine.get_tensor_dtype(name).name
        if kind not in _DTYPES or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise EngineError(f"{name!r} is a {kind} that numpy lacks or a shape kept on the host; keep such inside")
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        tensors[name] = _Tensor(np.dtype(_DTYPES[kind]), is_input, _limits(engine, name) if is_input else ())
    return tensors
