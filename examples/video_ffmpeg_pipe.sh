#!/bin/sh
# Score what the ffmpeg program decodes, filters or captures: any input it knows, two frames per second.
#
#     sh examples/video_ffmpeg_pipe.sh clip.mp4 [OPTIONS OF dgiqa-rt video]
#
# ffmpeg decides what is scored here (two frames per second, the largest 16:9 part of the picture at 640x360); dgiqa-rt
# is told the shape and the rate of it.
set -eu
input=$1
shift
part=scale=640:360:flags=bicubic:force_original_aspect_ratio=increase,crop=640:360
ffmpeg -nostdin -v error -i "$input" -vf "fps=2,$part" -f rawvideo -pix_fmt rgb24 - |
    python -m dgiqa video - --raw 640x360@2 --frames all "$@"
