"""The GPU decoder's way in, with a stand-in for PyNvVideoCodec that decodes with PyAV: no GPU is needed or used."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_fakes
import numpy as np
import pytest
from gpu_fakes import FakeDriver
from test_on_device import Late
from video_clips import UInt8, av, numbered, swaying, write

from dgiqa.errors import BackendError
from dgiqa.runtime import cuda
from dgiqa.runtime.kernels import Kernels
from dgiqa.video import nvdec
from dgiqa.video.frames import Frame, Video
from dgiqa.video.live import follow
from dgiqa.video.nvdec import NvdecVideo
from dgiqa.video.sampling import Sampling
from dgiqa.video.source import Reading, RefusedError


class DecodedFrame:
    """A frame in device memory, NV12 without gaps, as PyNvVideoCodec hands it out."""

    def __init__(self, planes: UInt8, pts: int) -> None:
        self.planes, self.pts = np.ascontiguousarray(planes), pts

    def framesize(self) -> int:
        return self.planes.size

    def GetPtrToPlane(self, plane: int) -> int:  # noqa: N802 - its name
        assert plane == 0
        return self.planes.ctypes.data

    def getPTS(self) -> int:  # noqa: N802
        return self.pts


class Demuxer:
    """Packets of the first video stream."""

    def __init__(self, filename: str) -> None:
        self.container = av.open(filename)
        self.stream = self.container.streams.video[0]

    def __iter__(self) -> Iterator[Any]:
        return self.container.demux(self.stream)

    def GetNvCodecId(self) -> int:  # noqa: N802
        return 4

    def GetTimebaseNum(self) -> int:  # noqa: N802
        return int(self.stream.time_base.numerator)

    def GetTimebaseDen(self) -> int:  # noqa: N802
        return int(self.stream.time_base.denominator)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, kernels: Kernels) -> Any:
    """opened(path, off_by=levels of one sample): the video on a stand-in of the GPU."""
    driver = gpu_fakes.install(monkeypatch, FakeDriver())
    context = cuda.Context()

    def open_(path: Any, off_by: int = 0, *, on_host: bool = False, **reading: Any) -> NvdecVideo:
        def create_decoder(*, gpuid: int, codec: int, cudacontext: int, cudastream: int, usedevicememory: bool) -> Any:
            assert (gpuid, cudacontext, usedevicememory) == (0, gpu_fakes.PRIMARY, True)
            assert cudastream in driver.queues

            def decode(packet: Any) -> list[DecodedFrame]:
                for old in decoder.given:  # the memory is used again
                    old.planes[...] = 0
                decoder.given = []
                for frame in packet.decode():
                    planes = frame.to_ndarray().ravel().copy()
                    planes[1000] += np.uint8(off_by)
                    luma, chroma = np.split(planes, [frame.width * frame.height])
                    chroma = np.stack(np.split(chroma, 2), axis=1).ravel()  # NV12: U and V in turns
                    decoder.given.append(DecodedFrame(np.concatenate([luma, chroma]), frame.pts))
                return decoder.given

            decoder = SimpleNamespace(Decode=decode, given=[])
            return decoder

        module: Any = SimpleNamespace(CreateDemuxer=Demuxer, CreateDecoder=create_decoder)
        monkeypatch.setitem(sys.modules, "PyNvVideoCodec", module)
        late: Any = Late(driver, kernels)
        return NvdecVideo(path, Reading(**reading), context=context, kernels=late, on_host=on_host)

    open_.context = context  # type: ignore[attr-defined]
    return open_


def read(video: Video, wanted: Sampling) -> list[Frame]:
    with video:
        return list(video.frames(wanted))


def test_frames_and_times_are_those_of_the_cpu_and_stay_on_the_gpu(
    opened: Any, tmp_path: Path, photos: dict[str, UInt8]
) -> None:
    path = tmp_path / "clip.mp4"
    write(path, swaying(photos["coffee"], 30))
    found = read(opened(path), Sampling(every=0.3))
    for gpu, cpu in zip(found, read(Video(path), Sampling(every=0.3)), strict=True):
        assert (gpu.time_s, gpu.number) == (pytest.approx(cpu.time_s), cpu.number)
        assert isinstance(gpu.rgb, cuda.DeviceArray)
        with opened.context.current():
            np.testing.assert_array_equal(cuda.Lane(opened.context).numpy(gpu.rgb), cpu.rgb)


@pytest.mark.parametrize(("bars", "on_host"), [("crop", False), ("crop", True), ("keep", False), ("keep", True)])
def test_black_bars_are_left_out_on_the_gpu_as_well(
    opened: Any, tmp_path: Path, photos: dict[str, UInt8], bars: Any, on_host: bool
) -> None:
    path = tmp_path / "clip.mp4"
    write(path, [np.pad(picture, ((64, 64), (0, 0), (0, 0))) for picture in swaying(photos["coffee"], 10)])
    gpu = opened(path, bars=bars, on_host=on_host)
    copied = []
    take = gpu._lane.numpy
    gpu._lane.numpy = lambda array: copied.append(array.shape) or take(array)
    found, wanted = read(gpu, Sampling(every=0.1)), read(Video(path, Reading(bars=bars)), Sampling(every=0.1))
    looked = len(found) if on_host or bars == "crop" else 0
    assert len(copied) == looked + nvdec.COMPARED
    for frame, cpu in zip(found, wanted, strict=True):
        assert cpu.rgb is not None
        assert (frame.note, frame.scene, frame.seen) == (cpu.note, cpu.scene, None)
        assert isinstance(frame.rgb, np.ndarray if on_host else cuda.DeviceArray)
        assert frame.rgb.shape == cpu.rgb.shape
        with opened.context.current():
            whole = frame.rgb if on_host else take(frame.rgb.owner if bars == "crop" else frame.rgb)
        if bars == "crop" and not on_host:
            top, side = 64, (whole.shape[1] - cpu.rgb.shape[1]) // 2
            assert frame.rgb.pointer == frame.rgb.owner.pointer + 3 * (top * whole.shape[1] + side)
            whole = whole[top : top + cpu.rgb.shape[0], side : side + cpu.rgb.shape[1]]
        np.testing.assert_array_equal(whole, cpu.rgb)


def test_a_video_that_is_refused_is_one_row_and_the_others_go_on(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / "deep.mkv", numbered(3), codec="ffv1", layout="yuv420p10le")]
    paths.append(write(tmp_path / "clip.mp4", numbered(3)))
    stop = threading.Event()
    rows = [f for path in paths for f in follow(partial(opened, path), str(path), Sampling(every=0), stop)]
    assert [bool(frame.error) for frame in rows] == [True, False, False, False]


def test_a_decoder_that_disagrees_is_not_trusted(opened: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", numbered(10))
    assert len(read(opened(path), Sampling(every=0))) == 10
    with pytest.raises(RefusedError, match=r"differ from the CPU's by \d+ of 255 levels, wanted 2; take decoder cpu"):
        read(opened(path, off_by=20), Sampling(every=0))


def test_what_it_cannot_show_is_refused_with_the_reason(opened: Any, tmp_path: Path) -> None:
    deep = write(tmp_path / "deep.mkv", numbered(3), codec="ffv1", layout="yuv420p10le")
    with pytest.raises(RefusedError, match="yuv420p10le instead of 8-bit 4:2:0, which nvdec cannot convert here"):
        read(opened(deep), Sampling(every=0))
    clip = write(tmp_path / "clip.mp4", numbered(3))
    with clip.open("rb") as file, pytest.raises(RefusedError, match="local video files only"):
        opened(file)
    with pytest.raises(RefusedError, match="scenes are found on the CPU"):
        read(opened(clip), Sampling(per_scene=2))
    late = read(opened(clip), Sampling(start=60))
    assert "there is no frame from 60 s on" in late[0].error


def test_a_missing_library_or_driver_says_so(opened: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    video = opened(write(tmp_path / "clip.mp4", numbered(3)))
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    with pytest.raises(BackendError, match="pip install PyNvVideoCodec"):
        read(video, Sampling())
    assert nvdec.COMPARED > 0
