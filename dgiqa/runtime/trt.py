"""A TensorRT plan becomes a session: {name: array} -> {name: array}, arrays on the host or on the device.

Checked against a driver and an engine made for tests, which do the work of a stream as late as they may: not yet run
on a GPU. `plans` finds and loads, `builder.plan` builds.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dgiqa.errors import BackendError, EngineError
from dgiqa.runtime import cuda
from dgiqa.runtime.cuda import DeviceArray
from dgiqa.runtime.plans import Log, Shape, as_shape, import_tensorrt, load_plan

if TYPE_CHECKING:
    import tensorrt as trt


ALIGNMENT = 256  # bytes: what TensorRT asks of the address of every input and output
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
    streams: runs that can be under way at once, each with its own memory. graphs: CUDA graphs each of them keeps; one
    is recorded when input shapes (and, for device arrays, addresses) come for the second time. Lives in the CUDA
    context that is current when it is opened. Raises BackendError without TensorRT or a GPU, EngineError for a plan
    that does not load here.
    """

    backend: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(self, plan: str | Path, *, plugins: Sequence[Path] = (), streams: int = 2, graphs: int = 4) -> None:
        if streams < 1 or graphs < 0:
            raise ValueError(f"got {streams} streams and {graphs} graphs, wanted at least 1 and 0")
        trt = import_tensorrt()
        self._context = cuda.Context()
        self.log = Log()
        with self._context.current():
            self.engine = load_plan(Path(plan), plugins, self.log)
        self.tensors = _describe(self.engine)
        self.backend = f"tensorrt {trt.__version__}"
        self.inputs = tuple(name for name, tensor in self.tensors.items() if tensor.is_input)
        self.outputs = tuple(name for name, tensor in self.tensors.items() if not tensor.is_input)
        self._streams, self._graphs = streams, graphs
        self._slots: list[_Slot] = []
        self._idle: list[_Slot] = []
        self._turn = threading.Condition()
        self._closed = False

    def run(self, feeds: Mapping[str, Any], *, stream: Any = None, device: bool = False) -> dict[str, Any]:
        """Every output by name, for inputs that are numpy arrays or arrays on the device (read in place).

        stream: where to run (an int, or a stream of PyCUDA, cuda.core, PyTorch, CuPy); by default one of the session's.
        device: outputs are DeviceArrays that are ready once the stream (named in their interface) is, instead of numpy
        arrays that are ready now. Inputs on the device must stay as they are until then. Raises ValueError for wrong
        names, dtypes, layouts and shapes, BackendError if the engine fails.
        """
        if feeds.keys() != set(self.inputs):
            raise ValueError(f"got inputs {sorted(feeds)}, wanted {sorted(self.inputs)}")
        handle = None if stream is None else cuda.stream_handle(stream)
        with self._context.current(), self._slot(handle) as slot:
            return slot.run(feeds, slot.own_stream if handle is None else handle, device)

    def bind(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None) -> Binding:
        """Fixed arrays on the device -> something to enqueue on any stream, or to record in a CUDA graph of one's own.

        outputs: arrays to write to; an output that is not among them gets a fresh one. ValueError as in run, and for
        addresses that are not aligned to 256 bytes.
        """
        if feeds.keys() != set(self.inputs):
            raise ValueError(f"got inputs {sorted(feeds)}, wanted {sorted(self.inputs)}")
        with self._context.current():
            arrays = {name: self.device_input(name, feed) for name, feed in feeds.items()}
            scratch = cuda.DeviceBuffer(self._context, self.engine.device_memory_size_v2)
            execution = self.execution(scratch)
            shapes = self.set_shapes(execution, {name: array.shape for name, array in arrays.items()})
            for name in self.outputs:
                if outputs is None or name not in outputs:
                    arrays[name] = cuda.empty(self._context, shapes[name], self.tensors[name].dtype)
                else:
                    arrays[name] = cuda.as_device_array(outputs[name])
                    self._check(name, arrays[name].dtype, arrays[name].shape, shapes[name])
            if odd := [name for name, array in arrays.items() if array.pointer % ALIGNMENT]:
                raise ValueError(f"{odd} lie at addresses that are no multiples of {ALIGNMENT} bytes; copy them first")
            self.set_addresses(execution, {name: array.pointer for name, array in arrays.items()})
            return Binding(self, execution, scratch, arrays)

    def close(self) -> None:
        """Wait for what is under way and release all memory. Further runs raise ValueError."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
            self._turn.wait_for(lambda: len(self._idle) == len(self._slots))
            slots, self._slots, self._idle = self._slots, [], []
        with self._context.current():
            for slot in slots:
                slot.close()

    def __enter__(self) -> TrtSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _slot(self, stream: int | None) -> Iterator[_Slot]:
        with self._turn:
            self._turn.wait_for(lambda: self._closed or self._idle or len(self._slots) < self._streams)
            slot = self._choose(stream)
        try:
            yield slot
        finally:
            with self._turn:
                self._idle.append(slot)
                self._turn.notify()

    def _choose(self, stream: int | None) -> _Slot:
        """An idle slot: the stream's last one, else a new one while there may be more, else any."""
        if self._closed:
            raise ValueError("the session is closed; open it again")
        fits = [slot for slot in self._idle if stream in (None, slot.last_stream)]
        if not fits and len(self._slots) < self._streams:
            self._slots.append(_Slot(self, self._context, self._graphs))
            return self._slots[-1]
        slot = (fits or self._idle)[-1]
        self._idle.remove(slot)
        return slot

    # What follows is for this module: the steps that slots and bindings have in common.

    def execution(self, scratch: cuda.DeviceBuffer) -> trt.IExecutionContext:
        """A new execution context that computes in the given memory."""
        import tensorrt as trt

        execution = self.engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if execution is None:
            raise BackendError(f"{self.backend} made no execution context: {self.log.text()}")
        execution.set_device_memory(scratch.pointer, scratch.nbytes)
        return execution

    def set_shapes(self, execution: trt.IExecutionContext, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """The outputs' shapes, for inputs of these."""
        for name, shape in shapes.items():
            if not execution.set_input_shape(name, shape):
                raise BackendError(f"{self.backend} refused shape {shape} of {name!r}: {self.log.text()}")
        return {name: as_shape(execution.get_tensor_shape(name)) for name in self.outputs}

    def set_addresses(self, execution: trt.IExecutionContext, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            if not execution.set_tensor_address(name, address):
                raise BackendError(f"{self.backend} refused address {address:#x} of {name!r}: {self.log.text()}")

    def execute(self, execution: trt.IExecutionContext, stream: int) -> None:
        if not execution.execute_async_v3(stream):
            raise BackendError(f"{self.backend} did not run: {self.log.text()}")

    def device_input(self, name: str, feed: Any, stream: int | None = None) -> DeviceArray:
        """A checked array of this context."""
        array = cuda.as_device_array(feed, stream)
        self.check_input(name, array.dtype, array.shape)
        cuda.check_home(array, self._context)
        return array

    def check_input(self, name: str, dtype: np.dtype[Any], shape: Shape) -> None:
        """ValueError unless an input of this type and shape is within the profile."""
        tensor = self.tensors[name]
        self._check(name, dtype, shape, None)
        low, high = tensor.smallest, tensor.largest
        if len(shape) != len(low) or not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            raise ValueError(
                f"input {name!r} has shape {shape}, this plan takes {low} to {high}; build one for it: dgiqa-rt build "
                "with --batch or --depth"
            )

    def _check(self, name: str, dtype: np.dtype[Any], shape: Shape, wanted: Shape | None) -> None:
        if dtype != self.tensors[name].dtype:
            raise ValueError(f"{name!r} is {dtype}, wanted {self.tensors[name].dtype}")
        if wanted is not None and shape != wanted:
            raise ValueError(f"output {name!r} has shape {shape}, wanted {wanted}")


class Binding:
    """Inputs and outputs at fixed places on the device, and the memory to compute in. Made by TrtSession.bind.

    arrays: inputs and outputs by name. It is used in the session's context and on one stream at a time, is not dropped
    while it runs, and does not outlive the session.
    """

    def __init__(
        self,
        session: TrtSession,
        execution: trt.IExecutionContext,
        scratch: cuda.DeviceBuffer,
        arrays: Mapping[str, DeviceArray],
    ) -> None:
        self._session, self._execution, self._scratch = session, execution, scratch
        self.arrays = dict(arrays)

    def enqueue(self, stream: Any) -> None:
        """Put one run on a stream and return. The first one must not be recorded in a graph: TensorRT warms up."""
        self._session.execute(self._execution, cuda.stream_handle(stream))

    def close(self) -> None:
        """Release the memory to compute in; nothing that was enqueued may still be running."""
        self._scratch.close()


@dataclass(frozen=True)
class _Tensor:
    """An input or output of an engine; smallest and largest are the profile's, and empty for outputs."""

    dtype: np.dtype[Any]
    is_input: bool
    smallest: Shape = ()
    largest: Shape = ()


class _Slot:
    """All that one run at a time needs: a stream, memory for the largest shapes, and graphs of what came before."""

    def __init__(self, session: TrtSession, context: cuda.Context, graphs: int) -> None:
        self._session, self._context, self._limit = session, context, graphs
        self._resources: list[Any] = []
        try:
            self._stream = self._keep(cuda.Stream(context))
            self._done, self._ready = self._keep(cuda.Event(context)), self._keep(cuda.Event(context))
            self._scratch = self._keep(cuda.DeviceBuffer(context, session.engine.device_memory_size_v2))
            self._execution = session.execution(self._scratch)
            sizes = self._largest_bytes()
            self._buffers = {name: self._keep(cuda.DeviceBuffer(context, size)) for name, size in sizes.items()}
            self._pinned = {name: self._keep(cuda.PinnedBuffer(context, size)) for name, size in sizes.items()}
        except BaseException:
            self._release()
            raise
        self.own_stream = self.last_stream = int(self._stream)
        self._held: Any = None  # what the device may still be reading
        self._seen: OrderedDict[Any, None] = OrderedDict()
        self._recorded: OrderedDict[Any, tuple[cuda.Graph, trt.IExecutionContext, dict[str, Shape]]] = OrderedDict()

    def run(self, feeds: Mapping[str, Any], stream: int, device: bool) -> dict[str, Any]:
        cuda.follow(stream, self._done)  # the memory may still be in use on another stream
        self.last_stream = stream
        try:
            addresses, shapes = self._place(feeds, stream)
            produced = self._enqueue(shapes, addresses, stream)
            if device:
                return {name: self._on_device(name, shape, stream) for name, shape in produced.items()}
            for name, shape in produced.items():
                cuda.copy_out(self._pinned[name], self._buffers[name].pointer, self._nbytes(name, shape), stream)
            cuda.synchronize(stream)
            return {name: self._view(name, shape).copy() for name, shape in produced.items()}
        finally:
            self._done.record(stream)

    def close(self) -> None:
        self._done.wait()
        self._release()

    def _place(self, feeds: Mapping[str, Any], stream: int) -> tuple[dict[str, int], dict[str, Shape]]:
        """Where each input lies on the device, after copying there what does not; and the shapes."""
        host = {name: self._checked(name, feed) for name, feed in feeds.items() if not cuda.is_device_array(feed)}
        device = {
            name: self._session.device_input(name, feed, stream) for name, feed in feeds.items() if name not in host
        }
        if host:
            self._done.wait()  # an earlier copy may still read the pinned memory
        self._held = device
        addresses = {name: self._upload(name, array, stream) for name, array in host.items()}
        addresses |= {name: self._in_place(name, array, stream) for name, array in device.items()}
        shapes = {name: array.shape for name, array in host.items()}
        return addresses, shapes | {name: array.shape for name, array in device.items()}

    def _checked(self, name: str, feed: Any) -> NDArray[Any]:
        if not isinstance(feed, np.ndarray):
            raise ValueError(f"input {name!r} is {type(feed).__name__}, wanted a numpy array or an array on the device")
        self._session.check_input(name, feed.dtype, feed.shape)
        return feed

    def _in_place(self, name: str, array: DeviceArray, stream: int) -> int:
        if array.stream is not None and array.stream != stream:
            self._ready.record(array.stream)
            cuda.follow(stream, self._ready)
        if array.pointer % ALIGNMENT == 0:
            return array.pointer
        cuda.copy_within(self._buffers[name].pointer, array.pointer, array.nbytes, stream)
        return int(self._buffers[name].pointer)

    def _upload(self, name: str, array: NDArray[Any], stream: int) -> int:
        np.copyto(self._view(name, array.shape), array)
        cuda.copy_in(self._buffers[name].pointer, self._pinned[name], array.nbytes, stream)
        return int(self._buffers[name].pointer)

    def _enqueue(self, shapes: dict[str, Shape], addresses: dict[str, int], stream: int) -> dict[str, Shape]:
        """Run, by the graph recorded for these shapes and addresses if there is one; the outputs' shapes."""
        key = tuple(sorted((name, shapes[name], addresses[name]) for name in shapes))
        if key in self._recorded:
            self._recorded.move_to_end(key)
            graph, _, produced = self._recorded[key]
            graph.launch(stream)
            return produced
        repeated = key in self._seen and self._limit > 0
        # A graph may only be launched while its execution context stays as it was recorded: each has its own.
        execution = self._session.execution(self._scratch) if repeated else self._execution
        produced = self._session.set_shapes(execution, shapes)
        outputs = {name: self._buffers[name].pointer for name in produced}
        self._session.set_addresses(execution, {**addresses, **outputs})
        self._session.execute(execution, stream)  # also what TensorRT wants before it is recorded
        if repeated:
            graph = cuda.Graph(self._stream, lambda: self._session.execute(execution, self.own_stream))
            self._recorded[key] = (graph, execution, produced)
        self._seen[key] = None
        self._forget(stream)
        return produced

    def _forget(self, stream: int) -> None:
        while len(self._seen) > 4 * self._limit:
            self._seen.popitem(last=False)
        while len(self._recorded) > self._limit:
            cuda.synchronize(stream)  # the oldest may be running, in the execution context that goes with it
            self._recorded.popitem(last=False)[1][0].close()

    def _on_device(self, name: str, shape: Shape, stream: int) -> DeviceArray:
        array = cuda.empty(self._context, shape, self._session.tensors[name].dtype, stream)
        cuda.copy_within(array.pointer, self._buffers[name].pointer, array.nbytes, stream)
        return array

    def _view(self, name: str, shape: Shape) -> NDArray[Any]:
        view: NDArray[Any] = self._pinned[name].array(shape, self._session.tensors[name].dtype)
        return view

    def _largest_bytes(self) -> dict[str, int]:
        largest = {name: self._session.tensors[name].largest for name in self._session.inputs}
        shapes = {**largest, **self._session.set_shapes(self._execution, largest)}
        return {name: self._nbytes(name, shape) for name, shape in shapes.items()}

    def _nbytes(self, name: str, shape: Shape) -> int:
        return int(np.prod(shape, dtype=np.int64)) * self._session.tensors[name].dtype.itemsize

    def _keep(self, resource: Any) -> Any:
        self._resources.append(resource)
        return resource

    def _release(self) -> None:
        for graph, _, _ in getattr(self, "_recorded", {}).values():
            graph.close()
        while self._resources:
            self._resources.pop().close()


def _limits(engine: trt.ICudaEngine, name: str) -> tuple[Shape, Shape]:
    """The smallest and the largest shape of an input; a network of fixed shapes need not have a profile."""
    shape = as_shape(engine.get_tensor_shape(name))
    if -1 not in shape:
        return shape, shape
    smallest, _, largest = map(as_shape, engine.get_tensor_profile_shape(name, 0))
    return smallest, largest


def _describe(engine: trt.ICudaEngine) -> dict[str, _Tensor]:
    """Inputs and outputs by name."""
    import tensorrt as trt

    tensors = {}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        kind = engine.get_tensor_dtype(name).name
        if kind not in _DTYPES or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise EngineError(f"{name!r} is a {kind} that numpy lacks or a shape kept on the host; keep such inside")
        dtype = np.dtype(_DTYPES[kind])
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            smallest, largest = _limits(engine, name)
            tensors[name] = _Tensor(dtype, True, smallest, largest)
        else:
            tensors[name] = _Tensor(dtype, False)
    return tensors
