"""GStreamer for the tests: distributions install its Python bindings for their own Python, outside any environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE_S

SYSTEM_PYTHON = "/usr/bin/python3"
BINDINGS = Path("/usr/lib/python3/dist-packages/gi")
PACKAGES = "Debian: python3-gi, gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-base, -good and -ugly"
CHECK = """
import gi, sys
for name in sys.argv[1].split(): gi.require_version(name, "1.0")
from gi.repository import Gst
Gst.init(None)
sys.exit(" ".join(e for e in sys.argv[2].split() if Gst.ElementFactory.find(e) is None) or None)
"""


def need(python: str, modules: str, elements: str, environment: dict[str, str] | None = None) -> None:
    """Skip, saying what is missing, unless this Python has these modules of GStreamer, and GStreamer these elements."""
    if not os.access(python, os.X_OK):
        pytest.skip(f"needs {python} with GStreamer's bindings ({PACKAGES})")
    command = [python, "-c", CHECK, modules, elements]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        pytest.skip(f"needs GStreamer ({PACKAGES}); {python} lacks: {reason}")


def bindings_only(folder: Path) -> Path:
    """A folder for PYTHONPATH that holds the distribution's bindings and none of its other packages."""
    if BINDINGS.is_dir():
        (folder / "gi").symlink_to(BINDINGS)
    return folder


def server_command(port: int = 0, *files: Path) -> list[str]:
    """How to start tests/rtsp_server.py; skips where it could not run."""
    need(SYSTEM_PYTHON, "Gst GstRtsp GstRtspServer", "videotestsrc x264enc rtph264pay rtppcmapay h264parse")
    return [SYSTEM_PYTHON, str(Path(__file__).with_name("rtsp_server.py")), str(port), *map(str, files)]


def environment(paths: list[Path]) -> dict[str, str]:
    """This process's environment, with these folders for Python and this Python first on the PATH."""
    python = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    return os.environ | {
        "PYTHONPATH": python,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
