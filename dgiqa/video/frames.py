"""A video (file, address, pipe, raw frames) -> the sampled frames, upright RGB with their timestamps, one at a time.

    packets -> (groups of pictures that nothing is sampled from are dropped undecoded) -> decoder -> pictures
            -> due by time, or evenly spread over a scene -> RGB -> without black bars

PyAV decodes. A frame that cannot be decoded is a Frame with an error, and reading goes on; an error that ends the
reading early is a Frame, too. Memory does not depend on the length: at most one group of compressed pictures is held,
and, when sampling by scenes, twice as many pictures as are wanted of each.
"""

import io
import math
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from dgiqa import bars
from dgiqa.dtypes import UInt8
from dgiqa.errors import ImageError
from dgiqa.image.sources import read_fully
from dgiqa.video import colour, sampling
from dgiqa.video.decoding import Clock, Decoding, Picture
from dgiqa.video.sampling import Sampling, SceneCuts, ScenePicks, Ticks
from dgiqa.video.source import Raw, Reading, RefusedError, VideoSource, import_av, name_of, open_container, open_raw

CONVERTING = (ImageError, ValueError, OSError)  # FFmpeg's errors are OSErrors or ValueErrors
HELD_FRAMES = 4  # so many frames, too dark to tell whether there are bars, wait for a lighter one


@dataclass(frozen=True, eq=False)
class Frame:
    """One sampled frame, or why there is none.

    time_s: seconds from the video's beginning, by the stream's own timestamps. number: counted from 0; after a seek,
    estimated from the mean frame rate. scene: counted from 0. rgb: uint8 [H,W,3], upright, None with an error.
    thumb: luma, uint8 [36,64], not upright. note: remarks on the picture (interlaced, tone-mapped). seen: if rgb is on
    a GPU, its pixels on the host, until bars have been looked for.
    """

    source: str
    time_s: float
    number: int | None
    rgb: UInt8 | None = field(default=None, repr=False)
    thumb: UInt8 | None = field(default=None, repr=False)
    scene: int = 0
    error: str = ""
    note: str = ""
    seen: UInt8 | None = field(default=None, repr=False)


class Video(AbstractContextManager["Video"]):
    """An opened video. A context manager; frames are read once.

    source: a path, an http(s), HLS, RTSP, RTMP, SRT or UDP address, "-" (a container on standard input) or an open
    binary file, which need not seek. name: what frames call their source.
    opened: the facts about the source, see `source.Opened`.
    Raises ImageError if there is no video in it, or none that can be decoded, BackendError without PyAV.
    """

    def __init__(
        self,
        source: VideoSource,
        reading: Reading = Reading(),  # noqa: B008 - frozen
        *,
        name: str | None = None,
    ) -> None:
        self.name, self.reading = name or name_of(source), reading
        if isinstance(source, os.PathLike):
            source = Path(source)
        elif isinstance(source, bytes | bytearray | memoryview):
            source = io.BytesIO(source)
        self._source = source
        self._open = partial(open_container, source, self.name, reading)
        self._rotation: int | None = None  # of the last frame, degrees
        self._turn: colour.Turn | None = None
        self.opened = open_raw(source, reading.raw, self.name, reading) if reading.raw else self._open()

    def frames(self, wanted: Sampling, stop: threading.Event | None = None) -> Iterator[Frame]:
        """The frames to score, in order of time; ends early once `stop` is set."""
        try:
            ticks = wanted.ticks(self._length_s(wanted), self.opened.rate)
        except ValueError as error:
            raise RefusedError(f"{self.name}: {error}") from error
        none = True
        for frame in self._without_bars(self._sampled(ticks, wanted, stop)):
            none = False
            yield frame
        if none and not (stop and stop.is_set()):
            yield Frame(self.name, wanted.start, None, error=self._nothing_in(wanted))

    def close(self) -> None:
        """Release the file or the connection."""
        self.opened.close(kept=self._source)

    def __exit__(self, *error: object) -> None:
        self.close()

    def _length_s(self, wanted: Sampling) -> float | None:
        """Seconds over which a count is spread. Where clocks may jump, a file's declared length may be wrong."""
        declared = self.opened.duration_s or None
        if wanted.count is None or not (self.opened.jumps and self.opened.path):
            return declared
        with closing(self._open()) as opened:
            clock, last_s = Clock(opened), 0.0
            for packet in opened.container.demux(opened.stream):
                clock.correct(packet)
                if packet.pts is not None:
                    last_s = max(last_s, packet.pts * clock.tick_s - opened.origin_s)
        return last_s + clock.frame_s if clock.jumped_s else declared

    def _sampled(self, ticks: Ticks, wanted: Sampling, stop: threading.Event | None) -> Iterator[Frame]:
        if self.reading.raw:
            pictures = self._raw_pictures(self.reading.raw, ticks, wanted.end)
        else:
            pictures = Decoding(self.opened, ticks, wanted.end).pictures()
        on = takewhile(lambda _: not (stop and stop.is_set()), pictures)
        return self._per_scene(on, wanted.per_scene) if wanted.per_scene else self._by_time(on)

    def _nothing_in(self, wanted: Sampling) -> str:
        """The error when nothing was sampled: a gate must not pass because nothing was looked at."""
        length = "" if self.opened.duration_s is None else f", the video is {self.opened.duration_s:.2f} s long"
        end = "s on" if math.isinf(wanted.end) else f"to {wanted.end:g} s"
        return f"there is no frame from {wanted.start:g} {end}{length}; begin earlier or end later"

    def _by_time(self, pictures: Iterator[Picture]) -> Iterator[Frame]:
        """A frame for every picture."""
        cuts = SceneCuts()
        for picture in pictures:
            if (thumb := self._thumb(picture)) is None:
                yield self._failed(picture, cuts.scene)
            else:
                yield self._converted(picture, thumb, cuts.scene_of(thumb))

    def _per_scene(self, pictures: Iterator[Picture], count: int) -> Iterator[Frame]:
        """`count` frames of each scene, chosen from all of its pictures when it ends; its errors come then, too."""
        cuts, picks, failed = SceneCuts(), ScenePicks[tuple[Picture, UInt8]](count), list[Frame]()
        scene = 0

        def chosen() -> Iterator[Frame]:
            for picture, thumb in picks.take():
                while failed and failed[0].time_s <= picture.time_s:
                    yield failed.pop(0)
                yield self._converted(picture, thumb, scene)
            yield from failed
            failed.clear()

        for picture in pictures:
            if (thumb := self._thumb(picture)) is None:
                failed.append(self._failed(picture, scene))
                continue
            if cuts.scene_of(thumb) != scene:
                yield from chosen()
                scene = cuts.scene
            picks.add((picture, thumb))
        yield from chosen()

    def _without_bars(self, found: Iterator[Frame]) -> Iterator[Frame]:
        """Frames without the black bars around them. Dark ones at the beginning wait until the bars are known."""
        if self.reading.bars == "keep":
            yield from found
            return
        tracker = bars.Tracker()
        held: list[Frame] = []
        patience = 0 if self.opened.live else HELD_FRAMES
        for frame in found:
            pixels = frame.rgb if frame.seen is None else frame.seen
            told = pixels is None or tracker.add(pixels, frame.scene)
            if told or not patience:
                patience = 0 if frame.rgb is not None else patience
                yield from (self._cropped(f, tracker.bars) for f in [*held, frame])
                held = []
                continue
            held.append(frame)
            patience -= 1
        yield from (self._cropped(f, tracker.bars) for f in held)

    def _cropped(self, frame: Frame, found: bars.Bars) -> Frame:
        """A frame without its bars, which its note then names."""
        if frame.rgb is None or found == bars.NONE:
            return replace(frame, seen=None)
        top, bottom, left, right = found
        sides = [f"{a} + {b} {what}" for a, b, what in ((top, bottom, "rows"), (left, right, "columns")) if a or b]
        note = f"black bars left out: {' and '.join(sides)}"
        note = "; ".join(filter(None, [frame.note, note]))
        return replace(frame, rgb=self._cut(frame.rgb, found), note=note, seen=None)

    def _cut(self, rgb: Any, found: bars.Bars) -> Any:
        """A picture without its bars."""
        return np.ascontiguousarray(bars.crop(rgb, found))

    def _failed(self, picture: Picture, scene: int) -> Frame:
        return Frame(self.name, picture.time_s, picture.number, scene=scene, error=picture.error, note=picture.note)

    def _thumb(self, picture: Picture) -> UInt8 | None:
        """A picture's thumbnail; None with an error, also if FFmpeg cannot convert the picture."""
        image = picture.image
        try:
            if not picture.error:
                return sampling.thumbnail(image) if isinstance(image, np.ndarray) else colour.luma_thumbnail(image)
        except CONVERTING as error:
            picture.error = str(error)
        return None

    def _converted(self, picture: Picture, thumb: UInt8, scene: int) -> Frame:
        image, note = picture.image, picture.note
        try:
            if not isinstance(image, np.ndarray):
                note = "; ".join(filter(None, [note, colour.notes(image, deinterlace=self.reading.deinterlace)]))
                image = colour.to_rgb(image, deinterlace=self.reading.deinterlace, turn=self._turn_of(image))
        except CONVERTING as error:
            return replace(self._failed(picture, scene), error=str(error), note=note)
        return Frame(self.name, picture.time_s, picture.number, image, thumb, scene, note=note)

    def _turn_of(self, frame: Any) -> colour.Turn | None:
        """A frame's own orientation, looked up again only when its rotation changes."""
        if self._rotation is None or frame.rotation not in (0, self._rotation):
            self._rotation, self._turn = frame.rotation, colour.turn_of(frame)
        return self._turn

    def _raw_pictures(self, raw: Raw, ticks: Ticks, end_s: float) -> Iterator[Picture]:
        if planar := raw.layout == "yuv420p":
            import_av()
        number = 0
        while not ticks.over and number / raw.rate <= end_s:
            data = read_fully(self.opened.pipe, raw.frame_bytes)
            time_s = number / raw.rate
            if len(data) < raw.frame_bytes:
                if data or not number:
                    got = f"{len(data)} bytes where a frame of {raw.frame_bytes} was due"
                    yield Picture(max(time_s, ticks.target), number, error=f"the raw stream ends with {got}")
                return
            if ticks.due(time_s):
                levels = np.frombuffer(data, np.uint8)
                levels = levels.reshape((-1, raw.width) if planar else (raw.height, raw.width, 3))
                yield Picture(time_s, number, colour.of_planes(levels) if planar else levels)
            number += 1
