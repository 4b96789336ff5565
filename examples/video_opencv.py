"""Score what an OpenCV capture sees: a camera (0, 1, ...), a file or an address. The newest frame wins.

python examples/video_opencv.py 0 [BUNDLE]
"""

import sys
import threading
import time

import cv2

from dgiqa import Scorer


def main(source: str, bundle: str = "small") -> None:
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if not capture.isOpened():
        sys.exit(f"OpenCV cannot open {source}")
    camera = source.isdecimal()
    with Scorer(bundle) as scorer, scorer.stream(live=camera) as stream:

        def grab() -> None:
            started = time.monotonic()
            while True:
                seconds = time.monotonic() - started if camera else capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                there, bgr = capture.read()
                if not there:
                    break
                stream.push(bgr[..., ::-1], seconds)  # OpenCV's channels are blue, green, red
            stream.finish()

        threading.Thread(target=grab, daemon=True).start()
        for row in stream:
            print(f"{row['time_s']:8.2f} s  {row['score']:.4f}  ({stream.dropped} dropped)", flush=True)
    capture.release()


if __name__ == "__main__":
    main(*sys.argv[1:])
