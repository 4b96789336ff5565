"""An RTSP server on the loopback interface, for tests: an H.264 test picture, or a file, in real time.

    python3 rtsp_server.py PORT [FILE.mkv]

Run as a program of its own by a Python that has GStreamer's bindings (Debian: python3-gi, gir1.2-gst-rtsp-server-1.0,
gstreamer1.0-plugins-base, -good, -ugly), which no virtual environment has. Prints "ready PORT" (PORT 0 picks a free
one), then obeys lines on standard input: "stall" sends no more pictures but keeps the connections, "go" sends again.
Streams: /camera 25 frames per second, /slow one every two seconds, /udp without TCP, /sound no video, /file the file.
"""

import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

PICTURE = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate={rate}"
CODED = "x264enc tune=zerolatency key-int-max={gop} bitrate=400 ! rtph264pay name=pay0 pt=96 config-interval=1"
SOUND = "audiotestsrc is-live=true ! alawenc ! rtppcmapay name=pay0 pt=8"
flowing = threading.Event()


def video(rate: str, gop: int) -> str:
    return f"( {PICTURE.format(rate=rate)} ! {CODED.format(gop=gop)} )"


def streams(files: list[str]) -> dict[str, str]:
    found = {
        "/camera": video("25/1", 10),
        "/udp": video("25/1", 10),
        "/slow": video("1/2", 1),
        "/sound": f"( {SOUND} )",
    }
    for file in files:
        found["/file"] = f'( filesrc location="{file}" ! matroskademux ! h264parse ! rtph264pay name=pay0 pt=96 )'
    return found


def hold(pad: Gst.Pad, info: Gst.PadProbeInfo) -> Gst.PadProbeReturn:
    return Gst.PadProbeReturn.OK if flowing.is_set() else Gst.PadProbeReturn.DROP


def configured(factory: GstRtspServer.RTSPMediaFactory, media: GstRtspServer.RTSPMedia) -> None:
    kinds = Gst.PadProbeType.BUFFER | Gst.PadProbeType.BUFFER_LIST
    media.get_element().get_by_name_recurse_up("pay0").get_static_pad("src").add_probe(kinds, hold)


def obey() -> None:
    for line in sys.stdin:
        flowing.set() if line.strip() == "go" else flowing.clear()
        print(line.strip(), flush=True)


def main(port: str, *files: str) -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=port)
    for path, description in streams(list(files)).items():
        factory = GstRtspServer.RTSPMediaFactory(launch=description, shared=path != "/file")
        if path == "/udp":
            factory.set_protocols(GstRtsp.RTSPLowerTrans.UDP)
        factory.connect("media-configure", configured)
        server.get_mount_points().add_factory(path, factory)
    if not server.attach(None):
        sys.exit(f"port {port} is taken")
    flowing.set()
    threading.Thread(target=obey, daemon=True).start()
    print(f"ready {server.get_bound_port()}", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
