"""Debian packages become the folder of photographs that the default model learnt from.

    python -m recipes.small.photographs --out PHOTOS

Needs apt-get and dpkg-deb; it downloads some 600 MB and installs nothing. The pictures are photographs, not drawings,
and none is black and white, completely out of focus or noisy, because all serve as pristine pictures. GCompris keeps
its photographs in Qt resource files, which `qt_resources` reads. Each package's copyright file
(usr/share/doc/PACKAGE/copyright) names the authors and the licence of each picture.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from dgiqa.errors import DgiqaError
from dgiqa.nn.commands import exit_code
from dgiqa.store import replacing

SHRINK = 0.75  # for pictures whose compression shows at full size
COMPRESSED = ("gcompris-qt-data", "palapeli-data")

_PLASMA = "BytheWater ColorfulCups DarkestHour EveningGlow FallenLeaf Kite OneStandsOut Path summer_1am"
_LOMIRI = """Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace Picture_1A_by_freespace
    Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich
    life_by_Aitzol_Berasategi picosdeeuropa_by_Aitzol_Berasategi seeding_by_Clements_Engelhardt
    sunset_by_Aitzol_Berasategi"""
_OPENCV = "data/building data/butterfly data/fruits data/home data/leuvenA"
_ANIMALS = """alpaca bee butterfly calf camels caterpillar chamaeleon cheetah crab dolphin gibbon giraffe goat gorilla
    gosling heron horse kingfisher kitten long_nosed_monkey macaque meerkats northern_harrier nubian_ibex penguin pika
    red_panda rhinoceros spoonbills squirrel toucan"""
_FARM = "cat chicken cow dog duck horse owl pig sheep"
_WORLD = "bison chameleon dragon giraffe hedgehog jaguar kangaroo koala lemur moose panda polar_bear scarlet_macaw"
_MONUMENTS = """arlesAmphitheater aulaPalatina bentPyramid berlinCathedral brandenburgGate canyondeChelly charminar
    chateaudeChambord chateaudeChenonceau christTheRedeemer citedeCarcassonne colosseum eiffelTower gatewayofIndia
    georgeWashingtonBirthplace goldenTemple greatPyramidOfGiza greatStupa greatWallofChina hawaMahal konarkSunTemple
    machuPicchu meidumPyramid montStMichel mountRushmore mysorePalace navajo neuschwansteinCastle palaisdesPapes petra
    pontduGard qutubMinar rangGhar redPyramid reimsCathedral rocamadour schwerinPalace statueofLiberty tajMahal
    trierImperialBaths wormsCathedral"""
_MATE = """nature/Aqua nature/Blinds nature/Dune nature/Garden nature/GreenMeadow nature/LadyBird nature/RainDrops
    nature/Storm nature/TwoWings nature/Wood nature/YellowFlower abstract/Elephants_3840x2160"""
_PALAPELI = "castle-maintenon cincinnati-bridge citrus-fruits european-honey-bee panther-chameleon-female"


def _paths(pattern: str, names: str) -> tuple[str, ...]:
    return tuple(pattern.format(name) for name in names.split())


def _resource(activity: str, folder: str, names: str) -> tuple[str, ...]:
    return _paths(f"usr/share/gcompris-qt/rcc/{activity}.rcc:{folder}/{{}}.webp", names)


# Package -> its pictures: paths in the package, with the end of the path in a resource file after a colon.
PICTURES: Mapping[str, Sequence[str]] = {
    "mate-backgrounds": _paths("usr/share/backgrounds/mate/{}.jpg", _MATE),
    "plasma-workspace-wallpapers": _paths("usr/share/wallpapers/{}/contents/images/2560x1600.jpg", _PLASMA),
    "lomiri-wallpapers-16.04": _paths("usr/share/backgrounds/{}.jpg", _LOMIRI),
    "lomiri-wallpapers-20.04": _paths("usr/share/backgrounds/{}.jpg", "Kleiber_by_Lukas_Baubkus"),
    "opencv-doc": (
        *_paths("usr/share/doc/opencv-doc/examples/{}.jpg", _OPENCV),
        *_paths("usr/share/doc/opencv-doc/examples/text/scenetext{}.jpg", "01 02 04 05"),
    ),
    "palapeli-data": _paths("usr/share/palapeli/collection/{}.jpg", _PALAPELI),
    "gcompris-qt-data": (
        *_resource("erase", "resource", _ANIMALS),
        *_resource("explore_farm_animals", "animals", _FARM),
        *_resource("explore_world_animals", "animals", _WORLD),
        *_resource("explore_monuments", "", _MONUMENTS),
        *_resource("explore_world_music", "music", "africa"),
    ),
}


def collect(package: str, unpacked: Path, out: Path) -> int:
    """Write the package's pictures into a folder as PACKAGE-NAME.png unless they exist; returns how many it has.

    unpacked: the folder into which `dpkg-deb -x` unpacked the package.
    Raises DgiqaError for a picture that is not in it or cannot be decoded.
    """
    out.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES[package]:
        target = _target(package, picture, out)
        if target.exists():
            continue
        pixels = cv2.imdecode(np.frombuffer(_bytes_of(picture, unpacked), np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise DgiqaError(f"{picture} of {package} is no picture that OpenCV can read")
        if package in COMPRESSED:
            pixels = cv2.resize(pixels, None, fx=SHRINK, fy=SHRINK, interpolation=cv2.INTER_AREA)
        encoded = cv2.imencode(".png", pixels)[1]
        with replacing(target) as unfinished:
            unfinished.write_bytes(encoded.tobytes())
    return len(PICTURES[package])


def _name(picture: str) -> str:
    """A picture's file name: its own, or its folder's if all pictures of a package have the same name."""
    path, _, inside = picture.partition(":")
    if "/wallpapers/" in path:
        return Path(path).parts[3]
    return f"{Path(path).stem}-{Path(inside).stem}" if inside else Path(path).stem


def _bytes_of(picture: str, unpacked: Path) -> bytes:
    path, _, inside = picture.partition(":")
    try:
        content = (unpacked / path).read_bytes()
    except FileNotFoundError as error:
        raise DgiqaError(f"{path} is not in {unpacked}; the package is of another version than expected") from error
    if not inside:
        return content
    for name, data in qt_resources(content):
        if name.endswith("/" + inside.lstrip("/")):
            return data
    raise DgiqaError(f"{path} has no {inside}; the package is of another version than expected")


def qt_resources(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The uncompressed files of a Qt resource file (.rcc, format versions 1 to 3): path, bytes.

    Raises DgiqaError for any other file.
    """
    try:
        magic, version, tree, data, names = struct.unpack_from(">4s4I", content)
        if magic != b"qres" or version not in (1, 2, 3):
            raise DgiqaError(f"got {magic!r}, version {version}; wanted a Qt resource file of version 1 to 3")
        entry_size = 14 if version == 1 else 22
        waiting = [(0, "")]  # entry, path of its folder
        seen = set[int]()
        while waiting:
            index, parent = waiting.pop()
            if index in seen:
                raise DgiqaError(f"the Qt resource file is damaged: entry {index} is in two folders")
            seen.add(index)
            entry = tree + index * entry_size
            name_at, flags = struct.unpack_from(">IH", content, entry)
            (length,) = struct.unpack_from(">H", content, names + name_at)
            start = names + name_at + 6
            name = content[start : start + 2 * length].decode("utf-16-be")
            path = f"{parent}/{name}" if index else ""
            if flags & 2:
                count, first = struct.unpack_from(">2I", content, entry + 6)
                if count > len(content) // entry_size:
                    raise DgiqaError(f"the Qt resource file is damaged: {count} files in {path or '/'}")
                waiting += [(child, path) for child in range(first, first + count)]
            elif not flags & 5:  # neither zlib's nor zstd's
                (offset,) = struct.unpack_from(">I", content, entry + 10)
                (size,) = struct.unpack_from(">I", content, data + offset)
                yield path, content[data + offset + 4 : data + offset + 4 + size]
    except (struct.error, UnicodeDecodeError) as error:
        raise DgiqaError(f"the Qt resource file is damaged: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.photographs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the photographs; existing ones are kept")
    options = parser.parse_args(arguments)
    return exit_code(lambda: gather(options.out))


def gather(out: Path) -> None:
    """Collect every package's pictures in a folder. Raises DgiqaError for a package that is not available."""
    for package in PICTURES:
        _gather(package, out)


def _gather(package: str, out: Path) -> None:
    """Download and unpack a package and collect its pictures, unless all of them exist."""
    if all(_target(package, picture, out).exists() for picture in PICTURES[package]):
        print(f"{package}: all there", file=sys.stderr, flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True, capture_output=True)
            (archive,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, folder], check=True, capture_output=True)
        except FileNotFoundError as error:
            raise DgiqaError(f"{error.filename} is missing; run this on Debian or a system made from it") from error
        except subprocess.CalledProcessError as error:
            reason = error.stderr.decode(errors="replace").strip()
            raise DgiqaError(f"{package} could not be had: {reason}; apt-get update may help") from error
        print(f"{package}: {collect(package, Path(folder), out)} photographs", file=sys.stderr, flush=True)


def _target(package: str, picture: str, out: Path) -> Path:
    return out / f"{package}-{_name(picture)}.png"


if __name__ == "__main__":
    sys.exit(main())
