"""NVIDIA's hardware decoder (PyNvVideoCodec): frames are decoded, turned to RGB and scored on the GPU.

    file -> NVDEC -> NV12 on the device -> RGB on the device, `colour.to_rgb`'s -> scored there
                                                 └──► a copy on the host, to find black bars and cuts in

That copy is left out with bars="keep". With reuse, frames go on from the host, where they are compared.

The first frames are decoded by PyAV, too, and compared: the codecs define every bit, so the difference should be 0, and
a video that differs by more than MAX_LEVELS anywhere is refused. So is everything that the kernel does not convert:
more than 8 bits, HDR, turned or interlaced pictures, odd sizes. It has not yet run on a GPU: the calls are those of
PyNvVideoCodec 2.2, tested with a stand-in.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from itertools import islice
from typing import Any

import numpy as np

from dgiqa.bars import Bars
from dgiqa.errors import BackendError
from dgiqa.hdr import HDR
from dgiqa.runtime import cuda
from dgiqa.runtime.kernels import Kernels, Nv12
from dgiqa.video import colour
from dgiqa.video.frames import Frame, Video
from dgiqa.video.sampling import Sampling, SceneCuts, Ticks, thumbnail
from dgiqa.video.source import Reading, RefusedError, VideoSource, import_av

COMPARED = 3  # frames decoded by both before the GPU's are trusted
MAX_LEVELS = 2  # of 255, largest difference of any channel of any pixel
_INSTEAD = "take decoder cpu for this video"


class NvdecVideo(Video):
    """A Video of a local file whose frames are arrays on the GPU, uint8 [H,W,3]. It refuses to sample by scenes.

    context: the one they are scored in. kernels: the library that makes RGB. on_host: copy pictures to the host.
    Raises RefusedError for anything but a local file, BackendError without the decoder.
    """

    def __init__(
        self,
        source: VideoSource,
        reading: Reading = Reading(),  # noqa: B008 - frozen
        *,
        context: cuda.Context,
        name: str | None = None,
        kernels: Kernels | None = None,
        on_host: bool = False,
    ) -> None:
        self._kernels, self._on_host = kernels or Kernels(), on_host
        super().__init__(source, reading, name=name)
        if not self.opened.path or self.reading.raw:
            raise RefusedError(f"nvdec reads local video files only; {_INSTEAD}")
        if self.opened.decoder is not self.opened.stream.codec_context:
            raise RefusedError(f"nvdec does not decode transparency; {_INSTEAD}")
        self._lane = cuda.Lane(context)

    def _sampled(self, ticks: Ticks, wanted: Sampling, stop: threading.Event | None) -> Iterator[Frame]:
        if wanted.per_scene:
            raise RefusedError(f"{self.name}: scenes are found on the CPU; {_INSTEAD}")
        reference, cuts = self._reference(), SceneCuts()
        for number, (time_s, picture) in enumerate(self._decoded(reference[0])):
            if (stop and stop.is_set()) or ticks.over or time_s > wanted.end:
                return
            due = ticks.due(time_s)
            if not due and number >= len(reference):
                continue
            rgb = self._rgb(picture)
            if number < len(reference):
                self._compare(rgb, reference[number])
            if not due:
                continue
            frame = Frame(self.name, time_s, number, rgb)  # type: ignore[arg-type] # it is on the GPU
            if self._on_host or self.reading.bars == "crop":
                with self._lane.current():
                    seen = self._lane.numpy(rgb)
                thumb = thumbnail(seen)
                frame = replace(frame, thumb=thumb, scene=cuts.scene_of(thumb), seen=seen)
            yield replace(frame, rgb=frame.seen, seen=None) if self._on_host else frame

    def _cut(self, rgb: Any, found: Bars) -> Any:
        """A view of the same memory, with the old stride of its rows."""
        if not isinstance(rgb, cuda.DeviceArray):
            return super()._cut(rgb, found)
        top, bottom, left, right = found
        height, width, _ = rgb.shape
        shape, at = (height - top - bottom, width - left - right, 3), rgb.pointer + 3 * (top * width + left)
        return cuda.DeviceArray(at, shape, rgb.dtype, rgb.stream, rgb, (3 * width, 3, 1))

    def _rgb(self, picture: Nv12) -> cuda.DeviceArray:
        """The picture as RGB in new memory, made before the decoder uses its own again."""
        with self._lane.current():
            rgb = self._lane.empty((picture.height, picture.width, 3), np.uint8)
            self._kernels.nv12(picture, rgb.pointer, stream=self._lane.handle)
            self._lane.sync()
        return rgb

    def _reference(self) -> list[Any]:
        """The first frames as PyAV decodes them. Raises RefusedError for videos that the GPU shows differently."""
        with import_av().open(f"file:{self.opened.path}") as container:
            frames = list(islice(container.decode(video=0), COMPARED))
        if not frames:
            raise RefusedError(f"the CPU finds no frame to compare nvdec's with; {_INSTEAD}")
        first = frames[0]
        wrong = {
            f"{first.format.name} instead of 8-bit 4:2:0": first.format.name not in ("yuv420p", "yuvj420p", "nv12"),
            "HDR": first.color_trc in HDR,
            "turned": bool(first.rotation) or colour.turn_of(first) is not None,
            "interlaced": first.interlaced_frame and self.reading.deinterlace,
            "of odd size": first.width % 2 or first.height % 2,
        }
        if found := [what for what, is_so in wrong.items() if is_so]:
            raise RefusedError(f"the video is {' and '.join(found)}, which nvdec cannot convert here; {_INSTEAD}")
        return frames

    def _decoded(self, like: Any) -> Iterator[tuple[float, Nv12]]:
        """Time and picture of every frame. A picture is valid until the next one is asked for."""
        matrix = colour.matrix_number(like.colorspace, like.height)
        full = like.color_range == colour.FULL or like.format.name.startswith("yuvj")
        nvc, context = _import_codec(), self._lane.context
        try:
            with context.current():
                demuxer = nvc.CreateDemuxer(filename=self.opened.path)
                decoder = nvc.CreateDecoder(
                    gpuid=context.device,
                    codec=demuxer.GetNvCodecId(),
                    cudacontext=int(context.handle),
                    cudastream=self._lane.handle,
                    usedevicememory=True,
                )
            height, width = like.height, like.width
            tick_s = demuxer.GetTimebaseNum() / demuxer.GetTimebaseDen()
            for packet in demuxer:
                with context.current():
                    frames = decoder.Decode(packet)
                for frame in frames:
                    if frame.framesize() != width * height * 3 // 2:
                        raise RefusedError(
                            f"nvdec gave {frame.framesize()} bytes for {width} x {height}, wanted NV12; {_INSTEAD}"
                        )
                    luma = int(frame.GetPtrToPlane(0))
                    picture = Nv12(luma, luma + width * height, height, width, (width, width), matrix, full, frame)
                    yield frame.getPTS() * tick_s - self.opened.origin_s, picture
        except RefusedError:
            raise
        except Exception as error:  # its exceptions share no base
            raise RefusedError(f"nvdec cannot decode {self.name} ({error}); {_INSTEAD}") from error

    def _compare(self, rgb: cuda.DeviceArray, frame: Any) -> None:
        wanted = colour.to_rgb(frame)
        with self._lane.current():
            got = self._lane.numpy(rgb)
        worst = int(np.abs(got.astype(np.int16) - wanted).max()) if got.shape == wanted.shape else 255
        if worst > MAX_LEVELS:
            raise RefusedError(
                f"nvdec's pixels differ from the CPU's by {worst} of 255 levels, wanted {MAX_LEVELS}; {_INSTEAD}"
            )


def _import_codec() -> Any:
    try:
        return import_module("PyNvVideoCodec")
    except Exception as error:  # without NVIDIA's driver its import raises RuntimeError
        reason = str(error).split("\n", maxsplit=1)[0]
        raise BackendError(f"nvdec needs PyNvVideoCodec and a driver ({reason}); pip install PyNvVideoCodec") from error
