#!/bin/sh
# Score what the ffmpeg program decodes, filters or captures: any input it knows, two frames per second.
#
#     sh examples/video_ffmpeg_pipe.sh clip.mp4 [OPTIONS OF dgiqa-rt video]
#
# ffmpeg decides what is scored here (fps=2, 640 pixels wide); dgiqa-rt is told the shape and the rate of it.
set -eu
input=$1
shift
ffmpeg -nostdin -v error -i "$input" -vf "fps=2,scale=640:360:flags=bicubic" -f rawvideo -pix_fmt rgb24 - |
    python -m dgiqa video - --raw 640x360@2 --frames all "$@"
