"""Score the frames of a GStreamer pipeline at its appsink, without slowing the pipeline down.

    python examples/video_gstreamer.py "filesrc location=clip.mp4 ! decodebin" [BUNDLE]
    python examples/video_gstreamer.py "rtspsrc location=rtsp://camera/1 ! decodebin"

Needs GStreamer's Python bindings (Debian: python3-gi gir1.2-gst-plugins-base-1.0).
"""

import sys
import threading

import gi
import numpy as np

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import Gst, GstApp, GstVideo  # noqa: E402

from dgiqa import Scorer  # noqa: E402

assert GstApp  # importing it gives the sink its Python methods
SINK = "videoconvert ! video/x-raw,format=RGB ! appsink name=sink max-buffers=4 sync=false"


def rgb_of(sample: Gst.Sample) -> np.ndarray:
    """The sample's picture, uint8 [H,W,3]; rows in GStreamer are padded to four bytes."""
    info = GstVideo.VideoInfo.new_from_caps(sample.get_caps())
    data = sample.get_buffer().extract_dup(0, sample.get_buffer().get_size())
    rows = np.frombuffer(data, np.uint8)[: info.stride[0] * info.height].reshape(info.height, info.stride[0])
    return rows[:, : info.width * 3].reshape(info.height, info.width, 3)


def failure(pipeline: Gst.Pipeline) -> str:
    """What an element of the pipeline reported, if one failed."""
    message = pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)
    return message.parse_error()[0].message if message else ""


def main(source: str, bundle: str = "small") -> None:
    Gst.init(None)
    pipeline = Gst.parse_launch(f"{source} ! {SINK}")
    sink = pipeline.get_by_name("sink")
    live = pipeline.set_state(Gst.State.PAUSED) == Gst.StateChangeReturn.NO_PREROLL  # cameras do not wait
    failed = ""
    with Scorer(bundle) as scorer, scorer.stream(live=live) as stream:

        def take() -> None:
            nonlocal failed
            while not sink.is_eos() and not (failed := failure(pipeline)):
                if (sample := sink.try_pull_sample(Gst.SECOND // 5)) is not None:
                    pts = sample.get_segment().to_stream_time(Gst.Format.TIME, sample.get_buffer().pts)
                    stream.push(rgb_of(sample), pts / Gst.SECOND)
            stream.finish()

        pipeline.set_state(Gst.State.PLAYING)
        threading.Thread(target=take, daemon=True).start()
        for row in stream:
            print(f"{row['time_s']:8.2f} s  {row['score']:.4f}", flush=True)
    pipeline.set_state(Gst.State.NULL)
    if failed:
        sys.exit(failed)


if __name__ == "__main__":
    main(*sys.argv[1:])
