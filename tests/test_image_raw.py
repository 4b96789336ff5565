"""Raw photographs of cameras: developed where rawpy is installed, else refused with the command that installs it."""

from __future__ import annotations

import contextlib
import struct
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from dgiqa.errors import ImageError
from dgiqa.image import decode, open_image

SIZES = {1: "B", 2: "B", 3: "H", 4: "I", 5: "I", 10: "i"}


def dng(mosaic: NDArray[np.uint16], orientation: int = 1) -> bytes:
    """A DNG of one page, its mosaic RGGB, uncompressed."""
    entries: list[tuple[int, int, list[int]]] = [
        *((254, 4, [0]), (256, 4, [mosaic.shape[1]]), (257, 4, [mosaic.shape[0]]), (258, 3, [16]), (259, 3, [1])),
        *(
            (262, 3, [32803]),
            (271, 2, list(b"Made\0")),
            (272, 2, list(b"Here\0")),
            (273, 4, [8]),
            (274, 3, [orientation]),
        ),
        *((277, 3, [1]), (278, 4, [mosaic.shape[0]]), (279, 4, [mosaic.nbytes]), (284, 3, [1])),
        *((33421, 3, [2, 2]), (33422, 1, [0, 1, 1, 2]), (50706, 1, [1, 4, 0, 0]), (50708, 2, list(b"Made Here\0"))),
        *((50714, 3, [0]), (50717, 3, [65535])),
        (50721, 10, [n for x in (1, 0, 0, 0, 1, 0, 0, 0, 1) for n in (x, 1)]),
        (50728, 5, [1, 1, 1, 1, 1, 1]),
    ]
    at = 8 + mosaic.nbytes
    end = at + 2 + 12 * len(entries) + 4
    directory, extra = struct.pack("<H", len(entries)), b""
    for tag, kind, values in entries:
        data = struct.pack(f"<{len(values)}{SIZES[kind]}", *values)
        count = len(values) // (2 if kind in (5, 10) else 1)
        held = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", end + len(extra))
        extra += b"" if len(data) <= 4 else data + bytes(len(data) % 2)
        directory += struct.pack("<HHI", tag, kind, count) + held
    return b"II*\0" + struct.pack("<I", at) + mosaic.tobytes() + directory + bytes(4) + extra


def mosaic(height: int = 64, width: int = 96) -> NDArray[np.uint16]:
    """Bright at the top, dark at the bottom."""
    return np.repeat(np.linspace(60000, 2000, height).astype(np.uint16)[:, None], width, axis=1)


def test_a_raw_photograph_is_developed_and_turned_upright() -> None:
    pytest.importorskip("rawpy")
    opened = open_image(dng(mosaic()))
    found = opened.decode()
    assert (opened.kind, opened.width, opened.height, found.rgb.shape) == ("DNG", 96, 64, (64, 96, 3))
    assert found.rgb.dtype == np.uint8
    assert found.rgb[4].mean() > found.rgb[-4].mean() + 50
    assert "developed from a raw photograph" in found.notes[0]
    turned = decode(dng(mosaic(), orientation=6))  # its top is at the right
    assert turned.shape == (96, 64, 3)
    assert turned[:, -4].mean() > turned[:, 4].mean() + 50


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's
@pytest.mark.parametrize("damage", ["cut", "zeros", "flipped"])
def test_a_damaged_one_is_an_error_or_pixels(damage: str) -> None:
    pytest.importorskip("rawpy")
    whole = dng(mosaic())
    generator = np.random.default_rng(0)
    for trial in range(60):
        data = bytearray(whole)
        at = int(generator.integers(4, len(data)))
        if damage == "cut":
            data = data[:at]
        elif damage == "zeros":
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        else:
            data[-1 - trial * 5 % 300] ^= int(generator.integers(1, 256))  # in the directory, behind the mosaic
        with contextlib.suppress(ImageError):
            assert decode(bytes(data)).ndim == 3


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"FUJIFILMCCD-RAW 0201", "RAF"),
        (b"II*\0\x10\0\0\0CR\2\0", "CR2"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "CR3"),
        (b"IIRO\x08\0\0\0", "ORF"),
        (b"IIU\0\x18\0\0\0", "RW2"),
        (b"FOVb\0\0", "X3F"),
        (b"\0MRM\0\0", "MRW"),
    ],
)
def test_headers_alone_are_named_and_so_is_what_reads_them(
    head: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError, match=rf"raw photograph \({kind}\).*develop it to JPEG"):
        decode(head)
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(ImageError, match=rf"raw photograph \({kind}\).*dgiqa-rt\[raw\]"):
        decode(head)
