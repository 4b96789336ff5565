"""Videos -> sampled frames: which ones, at what time, with which pixels, and what happens to broken ones."""

from __future__ import annotations

import gc
import io
import itertools
import math
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from video_clips import RATE, UInt8, av, damage, level, numbered, swaying, truncate, write

from dgiqa.errors import ImageError
from dgiqa.hdr import HLG, PQ
from dgiqa.video import colour
from dgiqa.video.frames import Frame, Video
from dgiqa.video.sampling import EVERY_S, Sampling, SceneCuts, ScenePicks, seconds, thumbnail
from dgiqa.video.source import Raw, Reading, _rate, name_of

ALL = Sampling(every=0)
LOSSLESS = {"codec": "ffv1"}


def read(source: Any, wanted: Sampling = ALL, **options: Any) -> list[Frame]:
    with Video(source, Reading(**options)) as video:
        return list(video.frames(wanted))


def times(found: list[Frame]) -> list[float]:
    return [round(f.time_s, 3) for f in found]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of numbered frames with B-frames and a key frame every ten."""
    return write(tmp_path_factory.mktemp("clips") / "clip.mp4", numbered(100))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("12", 12), ("1.5s", 1.5), ("250ms", 0.25), ("2min", 120), ("1h", 3600), ("01:02:03.5", 3723.5), ("1:05", 65)],
)
def test_times_are_read_as_people_write_them(text: str, wanted: float) -> None:
    assert seconds(text) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["", "-1", "1:99", "soon", "1.5x", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        seconds(text)


def test_all_frames_come_with_their_numbers_and_times(clip: Path) -> None:
    found = read(clip)
    assert [f.number for f in found] == list(range(100))
    assert times(found) == pytest.approx([i / RATE for i in range(100)])
    assert all(abs(level(f.rgb) - f.number) <= 2 for f in found if f.rgb is not None and f.number is not None)


@pytest.mark.parametrize("every", [0.1, 0.5, 1.0, 1.3])
def test_a_sample_is_the_first_frame_at_or_after_its_time(clip: Path, every: float) -> None:
    found = read(clip, Sampling(every=every))
    due = [math.ceil(round(k * every * RATE, 6)) for k in range(100) if k * every <= 99 / RATE]
    assert [f.number for f in found] == due
    assert all(abs(level(f.rgb) - n) <= 2 for f, n in zip(found, due, strict=True) if f.rgb is not None)


def test_groups_of_pictures_without_a_sample_are_not_decoded(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dgiqa.video.decoding import Decoding

    decoded = []
    original = Decoding._decode
    monkeypatch.setattr(Decoding, "_decode", lambda self, packet: (decoded.append(packet), original(self, packet))[1])
    found = read(clip, Sampling(every=2))
    assert [f.number for f in found] == [0, 50]
    assert len(decoded) < 40


def test_far_samples_are_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dgiqa.video.decoding import Decoding

    path = write(tmp_path / "long.mkv", numbered(100), times=[0.5 * i for i in range(100)])
    sought = []
    original = Decoding._seek
    monkeypatch.setattr(Decoding, "_seek", lambda self, time_s: (sought.append(time_s), original(self, time_s))[1])
    found = read(path, Sampling(every=20))
    assert times(found) == [0, 20, 40]
    assert sought
    assert [level(f.rgb) for f in found if f.rgb is not None] == pytest.approx([0, 40, 80], abs=2)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "ts", "mpg", "flv", "h264", "nut"])
def test_a_sample_is_found_wherever_it_lies_in_any_container(tmp_path: Path, kind: str) -> None:
    """Groups of 50 pictures in 30 seconds; MPEG's containers, FLV and a bare stream have no index to seek by."""
    codec = {"mpg": "mpeg2video", "avi": "mpeg4"}.get(kind, "libx264")
    path = write(tmp_path / f"clip.{kind}", numbered(750), codec=codec, gop=50, options={"bf": "0"})
    for wanted, numbers in (
        (Sampling(every=0, start=21.3, end=21.45), [533, 534, 535, 536]),
        (Sampling(every=12, start=2.3), [58, 358, 658]),
        (Sampling(every=0, start=29.9), [748, 749]),
    ):
        found = read(path, wanted)
        assert [f.error for f in found] == [""] * len(numbers)
        assert times(found) == pytest.approx([n / RATE for n in numbers], abs=0.002)
        levels = [level(f.rgb) for f in found if f.rgb is not None]
        assert levels == pytest.approx([n % 180 for n in numbers], abs=3)


def test_a_count_is_spread_evenly_and_a_stretch_is_respected(clip: Path) -> None:
    assert times(read(clip, Sampling(count=4))) == [0.48, 1.48, 2.48, 3.48]
    assert times(read(clip, Sampling(every=0.5, start=1.2, end=2.5))) == [1.2, 1.72, 2.2]
    assert [f.number for f in read(clip, Sampling(every=10, start=3))] == [75]


@pytest.mark.parametrize("kind", ["mkv", "ts", "mp4"])
def test_a_recording_that_begins_late_is_as_long_as_its_frames(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"clip.{kind}", numbered(50), times=[100 + i / RATE for i in range(50)])
    with Video(path) as video:
        assert video.opened.duration_s == pytest.approx(2, abs=0.1)
        found = list(video.frames(Sampling(count=4)))
    assert [(round(f.time_s, 1), f.error) for f in found] == [(0.2, ""), (0.8, ""), (1.2, ""), (1.8, "")]


@pytest.mark.parametrize(
    ("there", "wanted", "given"), [(1, 1, 1), (1, 10, 1), (3, 2, 2), (7, 7, 7), (7, 20, 7), (9, 5, 5)]
)
def test_as_many_are_given_as_wanted_or_as_there_are(tmp_path: Path, there: int, wanted: int, given: int) -> None:
    found = read(write(tmp_path / "clip.mp4", numbered(there)), Sampling(count=wanted))
    assert len({f.number for f in found if not f.error}) == len(found) == given


def test_a_count_of_what_is_past_the_end_is_refused(clip: Path) -> None:
    with pytest.raises(ImageError, match=r"it ends at 4.00 s, the first frame is wanted at 90 s"):
        read(clip, Sampling(count=3, start=90))


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (Sampling(every=1, start=90), "no frame from 90 s on, the video is 4.00 s long"),
        (Sampling(every=0, start=3.97), "no frame from 3.97 s on"),
        (Sampling(every=1, start=1.01, end=1.03), "no frame from 1.01 to 1.03 s"),
        (Sampling(per_scene=2, start=90), "no frame from 90 s on"),
    ],
)
def test_a_stretch_without_a_frame_is_an_error_not_a_success(clip: Path, wanted: Sampling, says: str) -> None:
    (found,) = read(clip, wanted)
    assert says in found.error


def test_the_default_is_a_frame_per_second(clip: Path) -> None:
    assert times(read(clip, Sampling())) == [0, 1, 2, 3]
    assert EVERY_S == 1.0


def test_samplings_that_mean_nothing_are_refused() -> None:
    for wrong in ({"every": 1, "count": 2}, {"every": -1}, {"count": 0}, {"per_scene": 0}, {"start": 3, "end": 2}):
        with pytest.raises(ValueError):
            Sampling(**wrong)  # type: ignore[arg-type]


def test_variable_frame_rate_keeps_the_streams_timestamps(tmp_path: Path) -> None:
    when = [0.0, 0.04, 0.5, 0.54, 1.7, 1.9, 4.0]
    path = write(tmp_path / "vfr.mkv", numbered(len(when)), times=when)
    assert times(read(path)) == when
    assert times(read(path, Sampling(every=1))) == [0, 1.7, 4.0]


@pytest.mark.parametrize(
    ("degrees", "shape", "corner"), [(90, (96, 64), (-1, 0)), (180, (64, 96), (-1, -1)), (0, (64, 96), (0, 0))]
)
def test_rotation_is_applied(tmp_path: Path, degrees: int, shape: tuple[int, int], corner: tuple[int, int]) -> None:
    path = tmp_path / "turned.mp4"
    write(path, numbered(3), prepare=lambda _, stream: stream.set_display_rotation(degrees) if degrees else None)
    rgb = read(path)[0].rgb
    assert rgb is not None
    assert rgb.shape[:2] == shape
    assert rgb[corner][0] > 200  # the bright corner, at the top left when upright


def test_mirrored_display_matrices_are_applied() -> None:
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    one = 1 << 16
    assert (colour._turned(rgb, (one, 0, 0, one)) == rgb).all()
    assert (colour._turned(rgb, (-one, 0, 0, one)) == rgb[:, ::-1]).all()
    assert (colour._turned(rgb, (one, 0, 0, -one)) == rgb[::-1]).all()
    assert (colour._turned(rgb, (0, one, one, 0)) == rgb.transpose(1, 0, 2)).all()


@pytest.mark.parametrize(("matrix", "kr", "kb"), [(1, 0.2126, 0.0722), (6, 0.299, 0.114), (9, 0.2627, 0.0593)])
@pytest.mark.parametrize("full", [False, True])
def test_matrix_and_range_are_those_of_the_stream(
    tmp_path: Path, matrix: int, kr: float, kb: float, full: bool
) -> None:
    y, u, v = 126, 110, 150
    planes = np.concatenate([np.full(64 * 48, y), np.full(64 * 12, u), np.full(64 * 12, v)]).astype(np.uint8)
    path = tmp_path / "colour.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        frame = av.VideoFrame.from_ndarray(planes.reshape(72, 64), format="yuv420p")
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        container.mux([*stream.encode(frame), *stream.encode()])
    rgb = read(path)[0].rgb
    luma, blue, red = (
        (y / 255, (u - 128) / 255, (v - 128) / 255) if full else ((y - 16) / 219, (u - 128) / 224, (v - 128) / 224)
    )
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    expected = np.array([r, (luma - kr * r - kb * b) / (1 - kr - kb), b]) * 255
    assert rgb is not None
    assert np.abs(rgb[24, 32] - expected).max() <= 1


def test_colours_without_a_way_to_rgb_are_an_error_with_the_reason() -> None:
    frame = av.VideoFrame(64, 48, "yuv420p")
    frame.colorspace = 14
    with pytest.raises(ImageError, match="ICtCp"):
        colour.to_rgb(frame)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_tone_mapping_keeps_order_and_greys_and_puts_white_near_the_top(transfer: int) -> None:
    ramp = np.repeat(np.linspace(0, 65535, 512).astype(np.uint16).reshape(1, -1, 1), 3, axis=2)
    mapped = colour.tone_map(ramp, transfer)[0].astype(int)
    assert (np.diff(mapped[:, 1]) >= 0).all()
    assert np.abs(mapped - mapped[:, 1:2]).max() <= 1  # greys stay grey
    code = {PQ: 0.5807, HLG: 0.75}[transfer]  # 203 nits, BT.2408's white
    assert 225 <= mapped[round(code * 511), 1] <= 245


def test_hdr_is_converted_and_said(tmp_path: Path) -> None:
    path = tmp_path / "hdr.mkv"

    def mark(frame: Any) -> None:
        frame.color_trc, frame.color_primaries, frame.colorspace = 16, 9, 9

    def prepare(_: Any, stream: Any) -> None:
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = 16, 9, 9

    write(
        path,
        numbered(2),
        codec="libx265",
        layout="yuv420p10le",
        options={"x265-params": "log-level=none"},
        mark=mark,
        prepare=prepare,
    )
    found = read(path)[0]
    assert found.note == "HDR (PQ) tone-mapped to SDR"
    assert found.rgb is not None


def test_interlaced_frames_are_said_and_deinterlaced_when_asked(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    path = tmp_path / "interlaced.mkv"
    combed = np.ascontiguousarray(photos["astronaut"][:256, :256]).copy()
    combed[1::2] = np.roll(combed[1::2], 12, axis=1)
    flags = {"flags": "+ildct+ilme", "x264-params": "tff=1"}

    write(path, [combed] * 3, options=flags)
    plain, smooth = read(path)[0], read(path, deinterlace=True)[0]
    assert plain.note == "interlaced"
    assert smooth.note == "interlaced, deinterlaced by estdif"

    def comb(rgb: UInt8 | None) -> float:
        assert rgb is not None
        luma = rgb.astype(float).mean(axis=2)
        return float(np.abs(2 * luma[1:-1] - luma[:-2] - luma[2:]).mean())

    assert comb(smooth.rgb) < 0.6 * comb(plain.rgb)


def test_a_damaged_packet_costs_its_frame_not_the_run(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    path = write(tmp_path / "damaged.avi", swaying(photos["coffee"], 50), codec="mpeg4")
    damage(path, 0.5)
    found = read(path)
    assert [f.number for f in found] == list(range(50))
    assert [f.number for f in found if f.error] == [25]
    assert "damaged packet" in found[25].error


def test_a_damaged_reference_costs_at_most_its_group(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    path = write(tmp_path / "damaged.mkv", swaying(photos["coffee"], 50), gop=10)
    damage(path, 0.5)
    failed = [f.number for f in read(path) if f.error and f.number is not None]
    assert failed
    assert max(failed) - min(failed) < 10
    assert len(read(path)) == 50


def test_damage_between_samples_costs_nothing(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    path = write(tmp_path / "damaged.avi", swaying(photos["coffee"], 50), codec="mpeg4")
    damage(path, 0.58)  # frame 29
    found = read(path, Sampling(every=0.4))
    assert [f.error for f in found] == [""] * 5


def test_a_truncated_file_gives_its_frames_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "short.mkv", numbered(100), **LOSSLESS)
    truncate(path, 0.5)
    found = read(path)
    assert 30 < len(found) < 70
    assert "it is truncated" in found[-1].error
    assert not any(f.error for f in found[:-2])


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(ImageError, match=r"it is empty \(0 bytes\)"):
        read(tmp_path / "clip.mp4")


@pytest.mark.parametrize("content", [b"", b"\0" * 4000, b"not a video at all" * 100])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="cannot be opened as a video"):
        read(path)


def test_an_mp4_that_lost_its_end_is_refused(tmp_path: Path, clip: Path) -> None:
    path = shutil.copy(clip, tmp_path / "cut.mp4")
    truncate(Path(path), 0.6)
    with pytest.raises(ImageError, match="truncated"):
        read(path)


def test_a_file_with_only_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(ImageError, match="has no video in it, only audio"):
        read(path)


def test_sound_beside_the_pictures_is_left_out(tmp_path: Path) -> None:
    tracks: list[Any] = []

    def with_sound(container: Any, stream: Any) -> None:
        tracks.append(container.add_stream("pcm_s16le", rate=8000))

    def silence(frame: Any) -> None:
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 320), np.int16), format="s16", layout="mono")
        sound.rate, sound.pts = 8000, frame.pts * 320
        tracks[0].container.mux(tracks[0].encode(sound))

    found = read(write(tmp_path / "sound.mkv", numbered(50), prepare=with_sound, mark=silence))
    assert [(f.number, f.error) for f in found] == [(i, "") for i in range(50)]


def test_the_cover_of_music_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "music.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.rate = 8000
        picture = av.VideoFrame.from_ndarray(next(numbered(1)), format="rgb24").reformat(format="yuvj420p")
        container.mux([*sound.encode(silence), *sound.encode(), *cover.encode(picture), *cover.encode()])
    with pytest.raises(ImageError, match="has no video in it, only a cover and audio"):
        read(path)


@pytest.mark.parametrize("frames_around", [2, 3])
def test_avi_with_b_frames_has_an_order_though_it_stores_no_times(tmp_path: Path, frames_around: int) -> None:
    path = write(tmp_path / "clip.avi", numbered(60), options={"bf": str(frames_around)}, gop=20)
    found = read(path)
    assert [f.error for f in found] == [""] * 60
    assert [f.number for f in found] == list(range(60))
    assert np.diff([f.time_s for f in found])[:50] == pytest.approx(1 / RATE, abs=0.001)
    assert all(f.rgb is not None and abs(level(f.rgb) - f.number) <= 3 for f in found if f.number is not None)
    damage(path, 0.5)
    hurt = read(path)
    assert 1 <= sum(bool(f.error) for f in hurt) <= 20
    assert len(hurt) == 60


@pytest.mark.parametrize(
    ("measured", "guessed", "tick", "rate"),
    [
        (Fraction(25), Fraction(25), Fraction(1, 25), 25),
        (Fraction(1175, 96), Fraction(25), Fraction(1, 12800), 1175 / 96),  # of a variable one, the mean
        (Fraction(60000), Fraction(25), Fraction(1, 60000), 25),  # DV in FFmpeg: its clock
        (Fraction(50), Fraction(25), Fraction(1, 50), 25),  # H.264 copied into AVI
        (None, Fraction(30), Fraction(1, 90000), 30),
        (None, Fraction(90000), Fraction(1, 90000), None),
        (None, None, None, None),
    ],
)
def test_a_clocks_rate_is_not_taken_for_that_of_frames(
    measured: Fraction | None, guessed: Fraction | None, tick: Fraction | None, rate: float | None
) -> None:
    stream = SimpleNamespace(average_rate=measured, guessed_rate=guessed, time_base=tick)
    assert _rate(stream) == rate


def test_a_container_without_a_frame_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.mkv", numbered(1), **LOSSLESS)
    with av.open(str(path)) as container:
        first = next(p for p in container.demux(video=0) if p.size)
    truncate(path, first.pos / os.path.getsize(path))
    found = read(path)
    assert len(found) == 1
    assert found[0].error


def test_a_video_of_one_frame_is_scored_once(tmp_path: Path) -> None:
    path = write(tmp_path / "one.mp4", numbered(1))
    for wanted in (ALL, Sampling(every=1), Sampling(per_scene=3)):
        assert [(f.number, f.error) for f in read(path, wanted)] == [(0, "")]


def test_a_change_of_resolution_is_followed(tmp_path: Path) -> None:
    """Two streams of different size, one after the other, as broadcasts and adaptive streams have them."""
    joined = tmp_path / "joined.ts"
    with joined.open("wb") as file:
        for i, (width, height) in enumerate(((96, 64), (160, 128))):
            part = io.BytesIO()
            write(
                part,
                numbered(10, width, height),
                kind="mpegts",
                times=[0.04 * (10 * i + j) for j in range(10)],
                options={"bf": "0"},
            )
            file.write(part.getvalue())
    shapes = [f.rgb.shape[:2] for f in read(joined) if f.rgb is not None]
    assert set(shapes) == {(64, 96), (128, 160)}
    assert shapes == sorted(shapes)


def test_a_folder_a_missing_file_and_an_odd_name_are_told_apart(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path, "is a folder"),
        (tmp_path / "no.mp4", "No such file"),
        (tmp_path / "*.avi", "no file matches"),
    ):
        with pytest.raises(ImageError, match=reason):
            read(path)


def test_a_text_under_an_images_name_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ImageError, match="is neither a video nor an image"):
        read(tmp_path / "text.jpg")


def test_a_path_is_never_taken_for_an_address(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "concat:a|b.mp4"
    shutil.copy(clip, name)
    assert len(read(name, Sampling(every=1))) == 4


def test_a_playlist_reaches_no_other_protocol(tmp_path: Path, clip: Path) -> None:
    """A local playlist may name local files, not the network."""
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(ImageError):
        read(playlist)


def test_containers_are_read_from_anything_with_a_read_method(clip: Path) -> None:
    class Pipe:
        def __init__(self, data: bytes) -> None:
            self.inner = io.BytesIO(data)

        def read(self, size: int) -> bytes:
            return self.inner.read(min(size, 1000))

    mkv = io.BytesIO()
    mkv.name = "clip.mkv"
    write(mkv, numbered(30), kind="matroska")
    found = read(Pipe(mkv.getvalue()), Sampling(every=0.5))
    assert times(found) == [0, 0.52, 1.0]


def test_an_mp4_with_its_index_last_says_what_to_do_in_a_pipe(tmp_path: Path) -> None:
    class Pipe:
        def __init__(self, path: Path) -> None:
            self.read = io.BytesIO(path.read_bytes()).read

    noise = np.random.default_rng(0).integers(0, 255, (30, 120, 160, 3), dtype=np.uint8)
    path = write(tmp_path / "large.mp4", noise)  # more than a buffer, in which FFmpeg could still go back
    assert "faststart" in read(Pipe(path))[0].error
    write(path, noise, prepare=lambda container, _: container.options.update(movflags="faststart"))
    assert [f.error for f in read(Pipe(path))] == [""] * 30


@pytest.mark.parametrize("layout", ["rgb24", "yuv420p"])
def test_raw_frames_are_read_from_a_pipe(layout: str) -> None:
    frames = list(numbered(10))
    data = b"".join(
        av.VideoFrame.from_ndarray(f, format="rgb24").reformat(format=layout).to_ndarray().tobytes() for f in frames
    )
    found = read(io.BytesIO(data), Sampling(every=0.2), raw=Raw.parse(f"96x64@25:{layout}"))
    assert times(found) == [0, 0.2]
    assert [f.number for f in found] == [0, 5]
    assert [level(f.rgb) for f in found if f.rgb is not None] == pytest.approx([0, 5], abs=1)


def test_a_raw_pipe_that_ends_within_a_frame_says_so() -> None:
    data = next(numbered(1)).tobytes()
    found = read(io.BytesIO(data + data[:100]), raw=Raw.parse("96x64@25"))
    assert [f.error == "" for f in found] == [True, False]
    assert "100 bytes where a frame of 18432 was due" in found[1].error
    assert "0 bytes" in read(io.BytesIO(b""), raw=Raw.parse("96x64@25"))[0].error


@pytest.mark.parametrize("text", ["", "96x64", "0x64@25", "96x64@0", "97x64@25:yuv420p", "96x64@25:bgr"])
def test_what_describes_no_raw_frames_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Raw.parse(text)


def test_scenes_are_numbered_and_sampled_by_scene(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    views = [f for name in ("astronaut", "coffee", "rocket") for f in swaying(photos[name], 20)]
    path = write(tmp_path / "scenes.mp4", views)
    assert [f.scene for f in read(path)] == [0] * 20 + [1] * 20 + [2] * 20
    found = read(path, Sampling(per_scene=2))
    assert [f.scene for f in found] == [0, 0, 1, 1, 2, 2]
    assert [20 * f.scene <= (f.number or 0) < 20 * f.scene + 20 for f in found] == [True] * 6


def test_motion_and_noise_are_no_scene_cut(photos: dict[str, UInt8]) -> None:
    cuts, generator = SceneCuts(), np.random.default_rng(0)
    for frame in swaying(photos["chelsea"], 60):
        noisy = np.clip(frame + generator.normal(0, 12, frame.shape), 0, 255).astype(np.uint8)
        assert cuts.scene_of(thumbnail(noisy)) == 0


def test_picks_hold_twice_as_many_as_wanted_and_are_spread_evenly() -> None:
    picks = ScenePicks[int](4)
    for i in range(1000):
        picks.add(i)
        assert len(picks._kept) <= 8
    taken = picks.take()
    assert len(taken) == 4
    assert all(150 < b - a < 350 for a, b in itertools.pairwise(taken))
    assert picks.take() == []


def test_a_password_is_left_out_of_names() -> None:
    assert name_of("rtsp://me:secret@camera/1") == "rtsp://***@camera/1"


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
def test_pixels_agree_with_the_ffmpeg_program(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    path = write(tmp_path / "clip.mp4", swaying(photos["rocket"], 3, width=320, height=240))
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-sws_flags", "bilinear+accurate_rnd+full_chroma_int"]
    raw = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    theirs = np.frombuffer(raw, np.uint8).reshape(3, 240, 320, 3)
    for mine, their in zip(read(path), theirs, strict=True):
        assert mine.rgb is not None
        # Chroma is upsampled differently at edges; a wrong matrix or range makes a mean of several levels
        assert np.abs(mine.rgb.astype(int) - their).mean() < 0.7


def test_the_display_matrix_of_a_file_is_in_its_header(tmp_path: Path) -> None:
    """The rotation test must not pass because the writer turned the pixels."""
    path = tmp_path / "turned.mp4"
    write(path, numbered(3), prepare=lambda _, stream: stream.set_display_rotation(90))
    data = path.read_bytes()
    start = data.index(b"tkhd") + 44
    assert struct.unpack(">i", data[start : start + 4])[0] == 0


def test_frames_that_were_read_are_not_kept_alive(clip: Path) -> None:
    """Neither by us nor in cycles that only a garbage collection would find."""
    gc.collect()
    gc.disable()
    try:
        for _ in read_lazily(clip):
            pass
        alive = sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 5


def read_lazily(source: Path) -> Iterator[Frame]:
    with Video(source) as video:
        yield from video.frames(ALL)
