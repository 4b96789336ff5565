"""Clips as recorders, cameras and broadcasts really write them, and files that are none: nothing is left out unsaid."""

from __future__ import annotations

import io
import logging
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from video_clips import RATE, UInt8, av, level, numbered, swaying, write

from dgiqa.bundle import Bundle
from dgiqa.errors import ImageError
from dgiqa.scorer import Scorer
from dgiqa.video import colour, sei
from dgiqa.video.decoding import _said, _zeroed
from dgiqa.video.frames import Frame, Video
from dgiqa.video.sampling import Sampling
from dgiqa.video.source import MAX_PIXELS, Raw, Reading, RefusedError
from dgiqa.video.whole import unseen

ALL = Sampling(every=0)
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
QUIET = {"x265-params": "log-level=none:open-gop=1"}


def read(source: Any, wanted: Sampling = ALL, **options: Any) -> list[Frame]:
    with Video(source, Reading(**options)) as video:
        return list(video.frames(wanted))


def part(first: int, count: int, begin_s: float, path: Path, **options: Any) -> bytes:
    """MPEG-TS of numbered frames whose clock begins at begin_s."""
    times = [begin_s + i / RATE for i in range(count)]
    frames = list(numbered(first + count))[first:]
    write(path, frames, times=times, kind="mpegts", options={"bf": "0"}, **options)
    return path.read_bytes()


@pytest.mark.parametrize("begins_s", [(0.0, 0.0), (0.0, 500.0), (200.0, 100.0), (0.0, 0.0, 0.0)])
def test_time_goes_on_where_recordings_are_joined(tmp_path: Path, begins_s: tuple[float, ...]) -> None:
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part(30 * i, 30, begin, tmp_path / "part.ts") for i, begin in enumerate(begins_s)))
    count = 30 * len(begins_s)
    for source in (joined, io.BytesIO(joined.read_bytes())):
        found = read(source)
        assert [(f.number, f.error) for f in found] == [(i, "") for i in range(count)]
        assert [f.time_s for f in found] == pytest.approx([i / RATE for i in range(count)], abs=0.002)
        assert [level(f.rgb) for f in found if f.rgb is not None] == pytest.approx(list(range(count)), abs=3)
        assert sum("clock jumps" in f.note for f in found) == len(begins_s) - 1
    every = read(joined, Sampling(every=0.5))
    assert [round(f.time_s, 1) for f in every][-1] >= count / RATE - 0.6
    spread = read(joined, Sampling(count=4))
    assert len(spread) == 4
    assert spread[-1].time_s > 0.8 * count / RATE


def test_a_playlist_with_a_discontinuity_is_read_to_its_end(tmp_path: Path) -> None:
    for i, begin in enumerate((50.0, 3.0)):
        (tmp_path / f"{i}.ts").write_bytes(part(25 * i, 25, begin, tmp_path / "part.ts"))
    playlist = (
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n0.ts\n#EXT-X-DISCONTINUITY\n#EXTINF:1,\n1.ts\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "index.m3u8").write_text(playlist)
    found = read(tmp_path / "index.m3u8")
    assert [(round(f.time_s * RATE), f.error) for f in found] == [(i, "") for i in range(50)]


@pytest.mark.parametrize("kind", ["flv", "mp4", "mov", "nut", "wmv"])
def test_a_second_recording_that_nobody_reads_is_an_error(tmp_path: Path, kind: str) -> None:
    how: dict[str, Any] = {"codec": "wmv2"} if kind == "wmv" else {"options": {"bf": "0"}}
    one = write(tmp_path / f"one.{kind}", numbered(25), **how)
    both = tmp_path / f"both.{kind}"
    both.write_bytes(one.read_bytes() * 2)
    assert [f.error for f in read(one)] == [""] * 25
    assert read(both)[-1].error == (
        f"another recording begins at byte {one.stat().st_size:,}, which was not read: split it there"
    )
    assert not any(f.error for f in read(both, Sampling(every=0.2, end=0.7)))


CHAINED: dict[str, dict[str, Any]] = {
    "mkv": {},
    "ts": {},
    "avi": {"codec": "mpeg4"},
    "flv": {"options": {"bf": "0"}},
    "webm": {"codec": "libvpx"},
    "ogv": {"codec": "libtheora", "options": {"q": "9"}},
    "mpg": {"codec": "mpeg2video"},
    "wmv": {"codec": "wmv2"},
    "mxf": {"codec": "mpeg2video"},
    "ivf": {"codec": "libvpx"},
    "y4m": {"codec": "wrapped_avframe"},
}


def is_refused(path: Path) -> bool:
    try:
        return any(f.error for f in read(path))
    except ImageError:
        return True


@pytest.mark.parametrize("kind", CHAINED)
def test_a_file_that_is_cut_or_has_lost_a_part_is_an_error(tmp_path: Path, kind: str) -> None:
    how = CHAINED[kind]
    if how.get("codec", "libx264") not in av.codecs_available:
        pytest.skip("this PyAV cannot write it")
    path = write(tmp_path / f"whole.{kind}", numbered(50), **how)
    whole = path.read_bytes()
    assert [f.error for f in read(path)] == [""] * 50
    for at in (len(whole) - 301, len(whole) * 9 // 10 | 1):  # both within a part, and the first within the last second
        path.write_bytes(whole[:at])
        assert is_refused(path)
    middle = len(whole) // 2
    for hole in (b"", bytes(2001)) if kind not in ("ts", "wmv", "y4m") else ():
        path.write_bytes(whole[:middle] + hole + whole[middle + 2001 :])
        assert is_refused(path)


def test_packets_that_mpeg_ts_lacks_are_an_error_and_joined_recordings_lack_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a picture that no other needs, FFmpeg's program says nothing."""
    parts = [part(25 * i, 25, 1.0 * i, tmp_path / "part.ts") for i in range(2)]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(parts))
    assert [f.error for f in read(path)] == [""] * 50
    whole = parts[0]
    of_video = [at for at in range(0, len(whole), 188) if (whole[at + 1] & 31, whole[at + 2]) == (1, 0)]
    lost = of_video[len(of_video) // 2]
    path.write_bytes(whole[:lost] + whole[lost + 188 :])
    assert f"damaged or cut off at byte {lost:,}"[:26] in read(path)[-1].error
    monkeypatch.setattr("dgiqa.video.whole._TS_AT_A_TIME", 10)
    assert f"damaged or cut off at byte {lost:,}"[:26] in read(path)[-1].error
    path.write_bytes(b"".join(parts))
    assert [f.error for f in read(path)] == [""] * 50


@pytest.mark.parametrize(
    ("codec", "kind", "header"), [("libx265", "hevc", b"\x40\1\x0c"), ("libx264", "h264", b"\x09")]
)
def test_a_stream_that_ends_before_a_picture_is_an_error(tmp_path: Path, codec: str, kind: str, header: bytes) -> None:
    path = write(tmp_path / f"a.{kind}", numbered(5), codec=codec, options=QUIET if kind == "hevc" else {})
    assert [f.error for f in read(path)] == [""] * 5
    path.write_bytes(path.read_bytes() + b"\0\0\1" + header + b"\x10")
    assert "damaged or cut off" in read(path)[-1].error


def test_threads_that_listen_to_ffmpeg_leave_its_log_as_it_was_and_nothing_on_the_terminal() -> None:
    with ExitStack() as last:
        with _said("ffv1"):
            last.enter_context(_said("wmv2"))  # of another thread, which begins later and ends later
        assert av.logging.get_level() == av.logging.ERROR
    assert av.logging.get_level() is None
    # or Python prints what decoders of other threads log meanwhile
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("libav").handlers)


def test_sectors_and_packets_that_wmv_lacks_are_an_error(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    path = write(tmp_path / "a.wmv", swaying(photos["coffee"], 40), codec="wmv2")
    whole = path.read_bytes()
    assert [f.error for f in read(path)] == [""] * 40
    for at in range(len(whole) // 4 // 512 * 512, len(whole) - 1024, 4096):
        path.write_bytes(whole[:at] + bytes(512) + whole[at + 512 :])
        assert is_refused(path), at
    begin = whole.find(ASF_DATA)
    size = int.from_bytes(whole[begin + 16 : begin + 24], "little")
    for packet in range((size - 50) // 3200):  # none of which any field still counts, but that of the whole file
        at = begin + 50 + 3200 * packet
        shorter = (size - 3200).to_bytes(8, "little")
        path.write_bytes(whole[: begin + 16] + shorter + whole[begin + 24 : at] + whole[at + 3200 :])
        assert "damaged or cut off" in unseen(path, "asf", 1)


def test_wmv_that_was_written_into_a_pipe_is_whole_and_one_that_lacks_a_packet_is_not(tmp_path: Path) -> None:
    whole = bytearray(write(tmp_path / "a.wmv", numbered(25, 320, 240), codec="wmv2").read_bytes())
    begin, header = whole.find(ASF_DATA), whole.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    whole[begin + 16 : begin + 24] = (50).to_bytes(8, "little")
    whole[header + 88] |= 1
    path = tmp_path / "piped.wmv"
    path.write_bytes(whole + bytes(12))  # as FFmpeg's muxer ends
    assert [f.error for f in read(path)] == [""] * 25
    path.write_bytes(whole[: begin + 50] + whole[begin + 3250 :])
    assert "damaged or cut off" in unseen(path, "asf", 1)


@pytest.mark.parametrize("kind", ["mxf", "asf"])
def test_containers_that_know_no_times_of_pictures_give_them_in_order(tmp_path: Path, kind: str) -> None:
    """FFmpeg takes the order of decoding for their times."""
    found = read(write(tmp_path / f"a.{kind}", numbered(40), options={"bf": "3"}))
    assert [(f.error, round(f.time_s * RATE)) for f in found] == [("", i) for i in range(40)]
    assert [level(f.rgb) for f in found if f.rgb is not None] == pytest.approx(list(range(40)), abs=3)


@pytest.mark.parametrize(("codec", "options"), [("libvpx", {"auto-alt-ref": "0"}), ("libvpx-vp9", {})])
def test_transparent_webm_is_laid_over_white(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    """As in browsers; FFmpeg's own decoders show what is beneath."""

    def prepare(container: Any, stream: Any) -> None:
        stream.metadata["alpha_mode"] = "1"

    def mark(frame: Any) -> None:
        plane = frame.planes[3]
        alpha = np.full((plane.height, plane.line_size), 255, np.uint8)
        alpha[:, : plane.width // 2] = 0
        plane.update(alpha.tobytes())

    how: dict[str, Any] = {"layout": "yuva420p", "prepare": prepare, "mark": mark, "options": options}
    found = read(write(tmp_path / "a.webm", numbered(5), codec=codec, **how), bars="keep")
    assert [(f.error, round(f.time_s * RATE)) for f in found] == [("", i) for i in range(5)]
    pictures = [f.rgb for f in found if f.rgb is not None]
    assert min(p[:, :40].min() for p in pictures) > 250
    assert [level(p[:, 56:]) for p in pictures] == pytest.approx(range(5), abs=4)


def test_streams_are_read_from_where_they_stand_and_those_at_their_end_anew(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.mp4", numbered(5)).read_bytes()
    later, over = io.BytesIO(b"mail" + whole), io.BytesIO(whole)
    later.seek(4)
    over.seek(0, os.SEEK_END)
    entry = next(os.scandir(tmp_path))
    for source in (later, over, over, whole, memoryview(whole), entry):
        assert [f.error for f in read(source)] == [""] * 5
    with open(tmp_path / "a.mp4", encoding="latin-1") as text, pytest.raises(ImageError, match="opened in text mode"):
        read(text)
    with pytest.raises(ImageError, match="got NoneType, wanted a path, an address, bytes"):
        read(None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_read_once_and_given_up_without_a_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(tmp_path / "a.mkv", numbered(5)).read_bytes()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(whole,))
    writer.start()
    assert [f.error for f in read(tmp_path / "pipe")] == [""] * 5
    writer.join()
    monkeypatch.setattr("dgiqa.video.source.TIMEOUT_S", 0.1)
    with pytest.raises(ImageError, match="nothing writes into this pipe"):
        read(tmp_path / "pipe")


def test_a_picture_that_cannot_be_converted_is_an_error_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage may leave FFmpeg with colours that nobody converts."""
    thumbnail, calls = colour.luma_thumbnail, iter(range(9))

    def once(frame: Any) -> UInt8:
        if next(calls) == 2:
            raise OSError(95, "Operation not supported")
        return thumbnail(frame)

    monkeypatch.setattr(colour, "luma_thumbnail", once)
    found = read(write(tmp_path / "a.mp4", numbered(5)))
    assert ["not supported" in f.error for f in found] == [False, False, True, False, False]


def test_an_animation_in_webp_says_what_to_do(tmp_path: Path) -> None:
    first, *others = [Image.fromarray(frame) for frame in list(numbered(90))[::30]]
    first.save(tmp_path / "a.webp", save_all=True, append_images=others)
    refused = "FFmpeg cannot read animated WebP; save it as WebM, APNG or GIF"
    wanted = [""] * 3 if "webp_anim" in av.codecs_available else [refused]  # since FFmpeg 8.1
    assert [f.error for f in read(tmp_path / "a.webp")] == wanted


def test_avi_from_a_pipe_which_knows_no_lengths_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", numbered(10), codec="mpeg4")
    data = bytearray(path.read_bytes())
    for at in (4, data.index(b"movi") - 4):
        data[at : at + 4] = b"\xff" * 4
    at = data.index(b"strh") + 40  # how many pictures
    data[at : at + 4] = (10_000).to_bytes(4, "little")
    path.write_bytes(data)
    assert [f.error for f in read(path)] == [""] * 10


def test_zero_bytes_in_a_stream_without_a_container_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.m2v", numbered(50), codec="mpeg2video", kind="mpeg2video", options={"bf": "0"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))
    assert f"damaged or cut off at byte {len(whole) // 2:,}"[:30] in read(path)[-1].error


def test_pictures_before_time_0_are_given(tmp_path: Path) -> None:
    """Where the first packet has no time, FFmpeg takes a later one for the beginning."""
    ticks = Sampling(every=0).ticks(None)
    assert ticks.due(-0.04)
    assert ticks.due(0.0)
    ticks = Sampling(every=1).ticks(None)
    assert [t for t in (-0.04, 0.0, 0.96, 1.0, 2.0) if ticks.due(t)] == [-0.04, 1.0, 2.0]
    assert not Sampling(start=1).ticks(None).due(0.5)


@pytest.mark.parametrize("kind", ["mpg", "mkv", "h264"])
def test_recordings_that_are_joined_are_read_to_the_end(tmp_path: Path, kind: str) -> None:
    how: dict[str, Any] = {"codec": "mpeg2video"} if kind == "mpg" else {"options": {"bf": "0"}}
    parts = [write(tmp_path / f"{i}.{kind}", list(numbered(50))[25 * i :][:25], **how).read_bytes() for i in range(2)]
    joined = tmp_path / f"joined.{kind}"
    joined.write_bytes(b"".join(parts))
    found = read(joined)
    assert [f.error for f in found] == [""] * 50
    assert [level(f.rgb) for f in found if f.rgb is not None] == pytest.approx(list(range(50)), abs=3)


def test_a_playlist_with_a_byte_order_mark_says_so(tmp_path: Path) -> None:
    (tmp_path / "0.ts").write_bytes(part(0, 25, 0, tmp_path / "part.ts"))
    playlist = tmp_path / "index.m3u8"
    playlist.write_bytes(b"\xef\xbb\xbf#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n0.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(RefusedError, match="a byte order mark, which HLS forbids; save it without one"):
        read(playlist)


def test_a_gap_in_a_container_that_keeps_time_is_no_jump(tmp_path: Path) -> None:
    when = [0.0, 0.04, 30.0, 30.04]
    found = read(write(tmp_path / "gap.mkv", numbered(4), times=when))
    assert [(round(f.time_s, 2), f.note) for f in found] == [(t, "") for t in when]


def test_two_fields_of_h264_are_one_picture(tmp_path: Path) -> None:
    """The packets of an interlaced stream, each cut between its two field pictures, as broadcasts carry them."""
    packets = [(90000 + 1800 * i, i % 2 == 1) for i in range(20)]
    from dgiqa.video.decoding import Numbers

    numbers = Numbers()
    for pts, second in packets:
        numbers.add(pts, second_field=second)
    numbers.fields = True
    assert [numbers.of(pts) for pts, second in packets if not second] == list(range(10))


@pytest.mark.parametrize(("codec", "kind"), [("mpeg2video", "ts"), ("libx265", "mp4"), ("libx265", "mkv")])
@pytest.mark.parametrize("every", [0.5, 1.0, 1.7])
def test_frame_numbers_are_right_after_open_groups_of_pictures(
    tmp_path: Path, codec: str, kind: str, every: float
) -> None:
    options = QUIET if codec == "libx265" else {"bf": "2"}
    path = write(tmp_path / f"open.{kind}", numbered(150), codec=codec, options=options, gop=12)
    found = read(path, Sampling(every=every))
    assert [f.number for f in found] == [round(f.time_s * RATE) for f in found]
    assert [level(f.rgb) for f in found if f.rgb is not None] == pytest.approx([f.number for f in found], abs=3)


def with_truncated_sei(path: Path, unit_header: bytes) -> Path:
    """A bare stream with a message in front of every picture that says to be longer than it is."""
    data = path.read_bytes()
    message = b"\0\0\0\1" + unit_header + b"\x05\xff\xff\x10" + bytes(range(1, 200)) + b"\x80"
    hurt = path.with_stem("hurt")
    with av.open(str(path)) as container, hurt.open("wb") as file:
        for packet in container.demux(video=0):
            if packet.size:
                file.write(message + bytes(packet))
    assert len(hurt.read_bytes()) > len(data)
    return hurt


@pytest.mark.parametrize(("codec", "kind", "header"), [("libx264", "h264", b"\x06"), ("libx265", "hevc", b"\x4e\x01")])
def test_a_message_that_is_cut_short_costs_no_picture(tmp_path: Path, codec: str, kind: str, header: bytes) -> None:
    options = QUIET if codec == "libx265" else {"bf": "0"}
    whole = write(tmp_path / f"whole.{kind}", numbered(20), codec=codec, options=options)
    hurt = with_truncated_sei(whole, header)
    before, after = read(whole), read(hurt)
    assert [f.error for f in after] == [""] * 20
    for a, b in zip(before, after, strict=True):
        assert a.rgb is not None
        assert (a.rgb == b.rgb).all()


def test_whole_messages_stay_in_their_packets(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", numbered(5), codec="libx265", options={"x265-params": "log-level=none:info=1"})
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        for packet in container.demux(video=0):
            assert not packet.size or sei.without_damage(packet, context) is packet


def test_a_damaged_slice_of_h264_is_an_error(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    """The decoder goes on and paints over it, but says so."""
    path = write(tmp_path / "clip.h264", swaying(photos["coffee"], 20), options={"bf": "0", "crf": "10"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        sizes = [p.size for p in container.demux(video=0) if p.size]
    begin = sum(sizes[:10])
    data[begin + sizes[10] // 2 : begin + sizes[10] // 2 + 200] = b"\xa5" * 200
    path.write_bytes(data)
    assert [i for i, f in enumerate(read(path)) if f.error] == [10]


@pytest.mark.parametrize(("codec", "name"), [("libx264", "clip.mp4"), ("libx265", "clip.mkv"), ("mjpeg", "clip.avi")])
def test_zero_bytes_in_place_of_data_are_an_error(
    tmp_path: Path, photos: dict[str, UInt8], codec: str, name: str
) -> None:
    options = {"bf": "0", "crf": "10", "x265-params": "log-level=none:bframes=0"} if codec != "mjpeg" else {}
    layout = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write(tmp_path / name, swaying(photos["coffee"], 20), codec=codec, layout=layout, options=options)
    with av.open(str(path)) as container:
        packet = bytes(next(p for i, p in enumerate(container.demux(video=0)) if i == 10))
    data = bytearray(path.read_bytes())
    begin = data.index(packet) + len(packet) // 2
    data[begin : begin + 200] = bytes(200)
    path.write_bytes(data)
    errors = [frame.error for frame in read(path)]
    assert not any(errors[:10])
    assert "damaged" in errors[10]


@pytest.mark.parametrize(("codec", "name"), [("libx264", "clip.h264"), ("libx265", "clip.hevc"), ("gif", "clip.gif")])
def test_damage_of_streams_without_times_is_an_error(
    tmp_path: Path, photos: dict[str, UInt8], codec: str, name: str
) -> None:
    options = QUIET | {"crf": "10"} if codec != "gif" else {}
    layout = "rgb8" if codec == "gif" else "yuv420p"
    path = write(tmp_path / name, swaying(photos["coffee"], 20), codec=codec, layout=layout, options=options)
    data = bytearray(path.read_bytes())
    assert not any(f.error for f in read(path))
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(data)
    assert any("damaged" in f.error for f in read(path))


@pytest.mark.parametrize(("codec", "kind", "pixels"), [("ffv1", "mkv", "yuv420p"), ("wmv2", "asf", "yuv420p")])
def test_damage_that_a_decoder_only_logs_is_an_error(
    tmp_path: Path, photos: dict[str, UInt8], codec: str, kind: str, pixels: str
) -> None:
    path, options = tmp_path / f"a.{kind}", {"level": "3", "slicecrc": "1"} if codec == "ffv1" else {}
    with av.open(str(path), "w") as made:
        stream = made.add_stream(codec, 25, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 96, pixels
        picture = np.ascontiguousarray(photos["astronaut"][:96, :160])
        for shift in range(10):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(picture, 3 * shift, 1)))
            made.mux(stream.encode(frame))
        made.mux(stream.encode())

    def errors() -> list[str]:
        with Video(path) as video:
            return [frame.error for frame in video.frames(Sampling(0)) if frame.error]

    before = av.logging.get_level()
    assert errors() == []
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 16] = b"\x5a" * 16
    path.write_bytes(whole)
    assert errors()
    assert av.logging.get_level() == before


def test_padding_with_zero_bytes_is_no_damage() -> None:
    padded = b"\0\0\1\x65data" + bytes(500) + b"\0\0\1\x41data" + bytes(500)
    assert not _zeroed(padded, "h264")
    assert _zeroed(padded + b"data", "h264")


def unknown_codec(path: Path) -> Path:
    write(path, numbered(5), codec="mjpeg", layout="yuvj420p")
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"ZZQ9"))
    return path


def test_a_stream_without_a_decoder_is_a_row_and_the_others_go_on(tiny_bundle: Bundle, tmp_path: Path) -> None:
    from dgiqa.video import VideoRun

    good = write(tmp_path / "good.mp4", numbered(5))
    with Scorer(tiny_bundle, threads=1) as scorer:
        rows = list(VideoRun(scorer.stages, [unknown_codec(tmp_path / "bad.avi"), good], ALL).rows())
    by_path = {name: [r for r in rows if r["path"].endswith(name)] for name in ("bad.avi", "good.mp4")}
    assert "no decoder" in by_path["bad.avi"][0]["error"]
    assert [r["status"] for r in by_path["good.mp4"]] == ["ok"] * 5


def test_whatever_one_source_raises_is_its_row(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise AttributeError("no such thing")

    monkeypatch.setattr(Video, "frames", broken)
    with Scorer(tiny_bundle, threads=1) as scorer:
        (row,) = scorer.score_video(write(tmp_path / "clip.mp4", numbered(3)))
    assert (row["status"], row["error"]) == ("error", "no such thing")


def test_frames_above_the_limit_are_refused_before_any_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", numbered(3))
    with pytest.raises(RefusedError, match=r"96 x 64, limit 6,000 pixels; raise max_pixels"):
        read(path, max_pixels=6000)
    with pytest.raises(RefusedError, match=r"60000 x 20000"):
        read(io.BytesIO(), raw=Raw.parse("60000x20000@25"))
    assert MAX_PIXELS >= 7680 * 4320


def test_playlists_name_files_of_their_own_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "hls"
    (folder / "parts").mkdir(parents=True)
    outside = tmp_path / "private.ts"
    outside.write_bytes(part(0, 25, 0, tmp_path / "part.ts"))
    (folder / "parts" / "0.ts").write_bytes(outside.read_bytes())
    (folder / "link.ts").symlink_to(outside)
    (folder / "nested.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n../private.ts\n#EXT-X-ENDLIST\n")

    def playlist(name: str) -> Path:
        path = folder / "index.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n")
        return path

    assert len(read(playlist("parts/0.ts"))) == 25
    for name in ("../private.ts", str(outside), f"file:{outside}", f"FILE://{outside}", "link.ts", "nested.m3u8"):
        with pytest.raises(RefusedError, match="not in its folder"):
            read(playlist(name))
    with pytest.raises(RefusedError, match=r"parts/1\.ts', which is missing"):
        read(playlist("parts/1.ts"))
    keyed = playlist("parts/0.ts")
    keyed.write_text(keyed.read_text().replace("#EXTINF", '#EXT-X-MAP:URI="../private.ts"\n#EXTINF'))
    with pytest.raises(RefusedError, match="not in its folder"):
        read(keyed)


def test_what_joins_or_draws_other_files_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ts").write_bytes(part(0, 25, 0, tmp_path / "part.ts"))
    monkeypatch.chdir(tmp_path)
    joined = b"ffconcat version 1.0\nfile a.ts\n"
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.ffconcat").write_bytes(joined)
    (tmp_path / "text.txt").write_text("no video but prose, line by line\n" * 100)
    (tmp_path / "text.nfo").write_text("no video but prose, line by line\n" * 100)
    for source in ("list.ffconcat", "text.txt", "text.nfo", io.BytesIO(joined), io.BytesIO(playlist)):
        with pytest.raises(ImageError, match="cannot be opened as a video"):
            read(source)


def test_transparent_pixels_are_white_as_in_images(tmp_path: Path, encode: Any) -> None:
    rgba = np.zeros((64, 96, 4), np.uint8)
    rgba[..., 0], rgba[32:, :, 3] = 200, 255
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgba"
        container.mux([*stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")), *stream.encode()])
    rgb = read(path)[0].rgb
    assert rgb is not None
    assert (rgb[:32] == 255).all()
    assert (rgb[32:] == (200, 0, 0)).all()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_still_has_the_pixels_that_score_sees(tmp_path: Path, photos: dict[str, UInt8], suffix: str) -> None:
    from PIL import Image

    from dgiqa.image import decode

    for name, quality in (("coffee", 95), ("astronaut", 30)):
        path = tmp_path / f"{name}.{suffix}"
        Image.fromarray(photos[name]).save(path, quality=quality)
        rgb = read(path)[0].rgb
        assert rgb is not None
        assert np.abs(rgb.astype(int) - decode(path.read_bytes())).mean() <= (1 if suffix == "jpg" else 0)


def boxed(photo: UInt8, count: int, dark: int = 0) -> Any:
    """A letterboxed clip, whose first frames are dark."""
    for i, frame in enumerate(swaying(photo, count, width=160, height=80)):
        yield np.pad(frame // 16 if i < dark else frame, ((20, 20), (0, 0), (0, 0)))


@pytest.mark.parametrize("dark", [0, 2])
def test_black_bars_are_left_out_and_said(tmp_path: Path, photos: dict[str, UInt8], dark: int) -> None:
    path = write(tmp_path / "boxed.mp4", boxed(photos["coffee"], 10, dark))
    found = read(path)
    assert {f.rgb.shape for f in found if f.rgb is not None} == {(80, 160, 3)}
    assert {f.note for f in found} == {"black bars left out: 20 + 20 rows"}
    kept = read(path, bars="keep")
    assert {f.rgb.shape for f in kept if f.rgb is not None} == {(120, 160, 3)}
    assert {f.note for f in kept} == {""}


def test_errors_of_a_scene_stand_at_their_times(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    from video_clips import damage

    views = [f for name in ("astronaut", "coffee") for f in swaying(photos[name], 25)]
    path = write(tmp_path / "scenes.avi", views, codec="mpeg4")
    damage(path, 0.4)
    found = read(path, Sampling(per_scene=3))
    assert any(f.error for f in found)
    assert [f.time_s for f in found] == sorted(f.time_s for f in found)
