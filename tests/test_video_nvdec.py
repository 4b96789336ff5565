"""The GPU decoder's way in, with a stand-in for PyNvVideoCodec that decodes with PyAV: no GPU is needed or used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from video_clips import UInt8, av, numbered, swaying, write

from dgiqa.errors import BackendError
from dgiqa.video import nvdec
from dgiqa.video.frames import Frame, Video
from dgiqa.video.sampling import Sampling


class DecodedFrame:
    """A frame in host memory, as PyNvVideoCodec hands it out."""

    def __init__(self, planes: UInt8, pts: int) -> None:
        self.planes = np.ascontiguousarray(planes)
        self.pts = pts

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

    def Width(self) -> int:  # noqa: N802
        return int(self.stream.width)

    def Height(self) -> int:  # noqa: N802
        return int(self.stream.height)

    def GetTimebaseNum(self) -> int:  # noqa: N802
        return int(self.stream.time_base.numerator)

    def GetTimebaseDen(self) -> int:  # noqa: N802
        return int(self.stream.time_base.denominator)


def stand_in(monkeypatch: pytest.MonkeyPatch, off_by: int = 0) -> None:
    def create_decoder(gpuid: int, codec: int, usedevicememory: bool) -> Any:
        assert not usedevicememory

        def decode(packet: Any) -> list[DecodedFrame]:
            frames = []
            for frame in packet.decode():
                planes = frame.to_ndarray().ravel().copy()
                planes[1000] += np.uint8(off_by)
                luma, chroma = np.split(planes, [frame.width * frame.height])
                chroma = np.stack(np.split(chroma, 2), axis=1).ravel()  # NV12: U and V in turns
                planes = np.concatenate([luma, chroma])
                frames.append(DecodedFrame(planes, frame.pts))
            return frames

        return SimpleNamespace(Decode=decode)

    module = SimpleNamespace(CreateDemuxer=Demuxer, CreateDecoder=create_decoder)
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", module)  # type: ignore[arg-type]


def read(path: Path, decoder: str, wanted: Sampling) -> list[Frame]:
    with Video(path, decoder=decoder) as video:
        return list(video.frames(wanted))


@pytest.mark.parametrize("degrees", [0, 90])
def test_frames_times_and_rotation_are_those_of_the_cpu_decoder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photos: dict[str, UInt8], degrees: int
) -> None:
    stand_in(monkeypatch)
    path = tmp_path / "clip.mp4"
    write(
        path, swaying(photos["coffee"], 30), prepare=lambda _, s: s.set_display_rotation(degrees) if degrees else None
    )
    for gpu, cpu in zip(*(read(path, d, Sampling(every=0.3)) for d in ("nvdec", "cpu")), strict=True):
        assert (gpu.time_s, gpu.number, gpu.scene) == (pytest.approx(cpu.time_s), cpu.number, cpu.scene)
        assert gpu.rgb is not None
        assert cpu.rgb is not None
        assert gpu.rgb.shape == cpu.rgb.shape
        assert np.abs(gpu.rgb.astype(int) - cpu.rgb).max() <= 1


def test_a_decoder_that_disagrees_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", numbered(10))
    stand_in(monkeypatch, off_by=nvdec.MAX_LEVELS)
    assert len(read(path, "nvdec", Sampling(every=0))) == 10
    stand_in(monkeypatch, off_by=nvdec.MAX_LEVELS + 1)
    with pytest.raises(BackendError, match="differ from the cpu decoder's by 3 of 255 levels"):
        read(path, "nvdec", Sampling(every=0))


def test_missing_frames_or_other_sizes_are_a_disagreement() -> None:
    one, other = np.zeros((72, 64), np.uint8), np.zeros((72, 80), np.uint8)
    assert nvdec.compare([one, one], [one, one]) == 0
    for gpu in ([one], [one, other]):
        with pytest.raises(BackendError, match="first frames are"):
            nvdec.compare(gpu, [one, one])


def test_what_it_cannot_read_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch)
    deep = write(tmp_path / "deep.mkv", numbered(3), codec="ffv1", layout="yuv420p10le")
    with pytest.raises(BackendError, match="8-bit 4:2:0 only"):
        read(deep, "nvdec", Sampling(every=0))
    clip = write(tmp_path / "clip.mp4", numbered(3))
    with (
        clip.open("rb") as file,
        Video(file, decoder="nvdec") as video,
        pytest.raises(BackendError, match="local files"),
    ):
        list(video.frames(Sampling()))


def test_a_missing_library_or_driver_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    path = write(tmp_path / "clip.mp4", numbered(3))
    with pytest.raises(BackendError, match="pip install PyNvVideoCodec"):
        read(path, "nvdec", Sampling())
