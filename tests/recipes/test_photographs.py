"""The photographs of the default model's recipe, from packages' folders that the tests lay out."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from dgiqa.errors import DgiqaError
from recipes.small import photographs
from recipes.small.photographs import PICTURES, collect, qt_resources

PICTURE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8), None, 2)
WEBP = cv2.imencode(".webp", PICTURE)[1].tobytes()


def resource_file(files: dict[str, bytes]) -> bytes:
    """A Qt resource file of version 3 with one folder, "animals"."""
    names, tree, data = b"", b"", b""

    def name(text: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    tree += struct.pack(">IHIIQ", name(""), 2, 1, 1, 0)
    tree += struct.pack(">IHIIQ", name("animals"), 2, len(files), 2, 0)
    for file, content in files.items():
        tree += struct.pack(">IHHHIQ", name(file), 0, 0, 0, len(data), 0)
        data += struct.pack(">I", len(content)) + content
    header = 24
    starts = header, header + len(tree), header + len(tree) + len(data)
    return struct.pack(">4s4II", b"qres", 3, *starts, 0) + tree + data + names


def test_files_of_a_qt_resource_file_are_found_by_path() -> None:
    files = {"owl.webp": WEBP, "notes.txt": b"owls"}
    assert dict(qt_resources(resource_file(files))) == {f"/animals/{name}": data for name, data in files.items()}


@pytest.mark.parametrize("damage", ["not one", "cut", "loop", "crowd"])
def test_a_damaged_resource_file_is_refused(damage: str) -> None:
    content = bytearray(resource_file({"owl.webp": WEBP}))
    if damage == "not one":
        content[:4] = b"RIFF"
    elif damage == "cut":
        del content[60:]
    elif damage == "loop":  # the folder holds itself
        content[24 + 22 + 10 : 24 + 22 + 14] = struct.pack(">I", 1)
    else:
        content[24 + 22 + 6 : 24 + 22 + 10] = b"\xff" * 4
    with pytest.raises(DgiqaError):
        list(qt_resources(bytes(content)))


def test_pictures_are_collected_once_from_files_and_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, beside = "usr/share/gcompris-qt/rcc/farm.rcc:animals/owl.webp", "usr/share/wallpapers/Kite/images/a.jpg"
    monkeypatch.setattr(photographs, "PICTURES", {"gcompris-qt-data": [inside], "other": [beside]})
    for name, data in ((inside.partition(":")[0], resource_file({"owl.webp": WEBP})), (beside, WEBP)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(data)
    out = tmp_path / "out"
    assert collect("gcompris-qt-data", tmp_path, out) == collect("other", tmp_path, out) == 1
    owl, kite = (
        np.asarray(cv2.imread(str(out / f"{name}.png"))) for name in ("gcompris-qt-data-farm-owl", "other-Kite")
    )
    assert owl.shape == (30, 45, 3)  # was compressed until it shows: three quarters of its size
    np.testing.assert_array_equal(kite, cv2.imdecode(np.frombuffer(WEBP, np.uint8), cv2.IMREAD_COLOR))

    written = (out / "other-Kite.png").stat().st_mtime_ns
    (tmp_path / beside).unlink()
    collect("other", tmp_path, out)
    assert (out / "other-Kite.png").stat().st_mtime_ns == written
    (out / "other-Kite.png").unlink()
    with pytest.raises(DgiqaError, match="another version"):
        collect("other", tmp_path, out)
    (tmp_path / beside).write_bytes(b"no picture")
    with pytest.raises(DgiqaError, match="no picture"):
        collect("other", tmp_path, out)
    assert not (out / "other-Kite.png").exists()


def test_no_two_pictures_are_called_alike() -> None:
    names = [
        f"{package}-{photographs._name(picture)}" for package, pictures in PICTURES.items() for picture in pictures
    ]
    assert len(set(names)) == len(names) == 143


def test_a_package_is_downloaded_again_only_while_a_picture_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(photographs, "PICTURES", {"opencv-doc": ["a/one.jpg", "a/two.jpg"]})
    asked = []

    def run(command, cwd=None, **options):
        asked.append(command[0])
        folder = Path(cwd or command[-1])
        (folder / "opencv-doc.deb").touch()
        (folder / "a").mkdir(exist_ok=True)
        for name in ("one", "two"):
            (folder / "a" / f"{name}.jpg").write_bytes(WEBP)

    monkeypatch.setattr(photographs.subprocess, "run", run)
    out = tmp_path / "out"
    assert photographs.main(["--out", str(out)]) == photographs.main(["--out", str(out)]) == 0
    assert asked == ["apt-get", "dpkg-deb"]
    assert "opencv-doc: all there" in capsys.readouterr().err
    (out / "opencv-doc-two.png").unlink()
    photographs.main(["--out", str(out)])
    assert len(asked) == 4

    def fail(command, **options):
        raise photographs.subprocess.CalledProcessError(100, command, stderr=b"E: Unable to locate package")

    monkeypatch.setattr(photographs.subprocess, "run", fail)
    (out / "opencv-doc-two.png").unlink()
    assert photographs.main(["--out", str(out)]) == 1
    assert "opencv-doc could not be had: E: Unable to locate package; apt-get update" in capsys.readouterr().err
