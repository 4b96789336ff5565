"""NVIDIA's hardware decoder (PyNvVideoCodec) in the place of PyAV's, after its pixels were compared with the CPU's.

Not yet run on a GPU: the calls are those of PyNvVideoCodec 2.2, tested with a stand-in of it.

Only decoding moves to the GPU. Frames come back as YCbCr planes and take the same way to RGB as any other, so range,
matrix and rotation cannot differ. What can is the decoder itself, hence the check: the first frames are decoded by
both, and one whose planes differ by more than MAX_LEVELS anywhere refuses the decoder. H.264, HEVC, VP9 and AV1 define
every bit of their output, so that the honest difference is 0; MPEG-2 and MPEG-4 leave the inverse transform's last bit
open.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dgiqa.errors import BackendError
from dgiqa.video import colour
from dgiqa.video.decoding import Picture, import_av

if TYPE_CHECKING:
    from dgiqa.video.frames import Video

COMPARED = 3  # frames decoded by both before the GPU's are trusted
MAX_LEVELS = 2  # of 255, largest difference of any sample of any plane
_METADATA = ("colorspace", "color_range", "color_trc", "color_primaries")


def pictures(source: Any, video: Video) -> Iterator[Picture]:
    """Every frame of a local file, decoded on the GPU, with the timestamps and metadata that the file gives.

    Raises BackendError if PyNvVideoCodec or the GPU is missing, cannot decode the file, or disagrees with the CPU.
    """
    if not isinstance(source, str | Path) or not os.path.isfile(source):
        raise BackendError("nvdec reads local files only; use the cpu decoder for addresses and pipes")
    if video.deinterlace:
        raise BackendError("nvdec gives frames without the marks that deinterlacing needs; use the cpu decoder")
    reference = _reference(source)
    if not reference:
        raise BackendError("the cpu decoder finds no frame to compare nvdec with; use the cpu decoder")
    decoded = _decoded(str(source), video.origin_s)
    first = list(islice(decoded, len(reference)))
    compare([planes for _, planes in first], [_planes(frame) for frame in reference])
    turn, made = colour.turn_of(reference[0]), colour.Planes(video.width, video.height)
    for number, (time_s, planes) in enumerate(chain(first, decoded)):
        yield Picture(time_s, number, _with_colours(made.frame(planes), reference[0]), turn=turn)


def compare(gpu: list[NDArray[np.uint8]], cpu: list[NDArray[np.uint8]]) -> int:
    """The largest difference of the first frames' 4:2:0 planes, uint8 [H*3/2,W] each, in levels.

    Raises BackendError if it is above MAX_LEVELS, or frames or sizes differ.
    """
    if [x.shape for x in gpu] != [x.shape for x in cpu]:
        raise BackendError(
            f"nvdec's first frames are {[x.shape for x in gpu]}, the cpu's {[x.shape for x in cpu]}; "
            "use the cpu decoder for this video"
        )
    worst = max(int(np.abs(a.astype(np.int16) - b).max()) for a, b in zip(gpu, cpu, strict=True))
    if worst > MAX_LEVELS:
        raise BackendError(
            f"nvdec's pixels differ from the cpu decoder's by {worst} of 255 levels, at most {MAX_LEVELS} allowed; "
            "use the cpu decoder for this video"
        )
    return worst


def _reference(source: Any) -> list[Any]:
    """The first frames as PyAV decodes them."""
    av = import_av()
    with av.open(f"file:{source}") as container:
        container.streams.video[0].thread_type = "SLICE"
        return list(islice(container.decode(video=0), COMPARED))


def _decoded(path: str, origin_s: float) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Time and 4:2:0 planes, uint8 [H*3/2,W], of every frame."""
    nvc = _import_codec()
    try:
        demuxer = nvc.CreateDemuxer(filename=path)
        decoder = nvc.CreateDecoder(gpuid=0, codec=demuxer.GetNvCodecId(), usedevicememory=False)
        width, height = demuxer.Width(), demuxer.Height()
        tick_s = demuxer.GetTimebaseNum() / demuxer.GetTimebaseDen()
        for packet in demuxer:
            for frame in decoder.Decode(packet):
                yield frame.getPTS() * tick_s - origin_s, _host_planes(frame, width, height)
    except BackendError:
        raise
    except Exception as error:  # its exceptions share no base
        raise BackendError(f"nvdec cannot decode {path} ({error}); use the cpu decoder") from error


def _host_planes(frame: Any, width: int, height: int) -> NDArray[np.uint8]:
    """A frame in host memory, NV12, as Y, U and V planes. A copy: the decoder uses the memory again."""
    size = frame.framesize()
    if size != width * height * 3 // 2:
        raise BackendError(f"nvdec gave {size} bytes for {width} x {height}, wanted 8-bit NV12; use the cpu decoder")
    data = (ctypes.c_uint8 * size).from_address(frame.GetPtrToPlane(0))
    levels = np.frombuffer(data, np.uint8)
    luma, chroma = levels[: width * height], levels[width * height :]
    return np.concatenate([luma, chroma[0::2], chroma[1::2]]).reshape(height * 3 // 2, width)


def _planes(frame: Any) -> NDArray[np.uint8]:
    """A PyAV frame's planes, uint8 [H*3/2,W]."""
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        raise BackendError(f"nvdec is used for 8-bit 4:2:0 only, this is {frame.format.name}; use the cpu decoder")
    return np.asarray(frame.to_ndarray(), np.uint8)


def _with_colours(frame: Any, like: Any) -> Any:
    """A PyAV frame with another one's colour metadata."""
    for name in _METADATA:
        setattr(frame, name, getattr(like, name))
    if like.format.name.startswith("yuvj"):  # full range by its name alone
        frame.color_range = colour.FULL
    return frame


def _import_codec() -> Any:
    try:
        return import_module("PyNvVideoCodec")
    except Exception as error:  # without NVIDIA's driver its import raises RuntimeError
        reason = str(error).split("\n", maxsplit=1)[0]
        raise BackendError(f"nvdec needs PyNvVideoCodec and a driver ({reason}); pip install PyNvVideoCodec") from error
