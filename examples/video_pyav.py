"""Score a video that PyAV decodes in your own loop: push frames as they come, pull rows as they are done.

    python examples/video_pyav.py clip.mp4 [BUNDLE]

`Scorer.score_video(path)` does all of this; a loop of your own is for programs that decode anyway.
"""

import sys
import threading

import av

from dgiqa import Scorer

EVERY_S = 0.5


def main(path: str, bundle: str = "small") -> None:
    with Scorer(bundle) as scorer, scorer.stream() as stream:

        def decode() -> None:
            due = 0.0
            with av.open(path) as container:
                for frame in container.decode(video=0):
                    if frame.time >= due:
                        stream.push(frame.to_ndarray(format="rgb24"), frame.time)  # waits while the scorer is busy
                        due += EVERY_S
            stream.finish()

        threading.Thread(target=decode, daemon=True).start()
        for row in stream:
            print(f"{row['time_s']:8.2f} s  {row['score']:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
