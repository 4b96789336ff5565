"""A bundle is written whole, and read only if it is what was written, inside its directory, of this version."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from damage import damaged, misshapen

from dgiqa import bundle as bundles
from dgiqa import spec
from dgiqa.bundle import Bundle, list_bundles, load_bundle, load_golden, write_bundle
from dgiqa.cli.bundles import _bundle_facts, _print_bundle
from dgiqa.errors import BundleError, DgiqaError
from dgiqa.scorer import Scorer
from dgiqa.store import user_cache

ONNX = b"\x08\x09"  # the least that is well-formed: a format number
FILES = {spec.DEPTH_FILE: ONNX, spec.QUALITY_FILE: ONNX + b"\x12\x05tests"}
LABELS = {"name": "sample", "title": "a sample", "licence": "Apache-2.0", "source": "the tests"}


@pytest.fixture
def sample(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "sample", files=FILES, **LABELS)


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the manifest on disk."""
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    change(manifest)
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    return bundle.path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "copied.onnx").write_bytes(ONNX + b"\x1a\x04file")
    written = write_bundle(
        tmp_path / "deep" / "b",
        files={**FILES, spec.QUALITY_FILE: tmp_path / "copied.onnx", "golden/01.png": b"png"},
        origins={"golden/01.png": {"licence": "CC0-1.0"}},
        preprocess=spec.Preprocess(depth_lower_bound=256, depth_multiple=32),
        parity={"quality": 1e-6},
        model_card={"srocc": 0.9},
        versions={"onnx": "1"},
        **LABELS,
    )
    read = load_bundle(tmp_path / "deep" / "b")
    assert read == written
    assert read.preprocess == spec.Preprocess(depth_lower_bound=256, depth_multiple=32)
    assert read.file(spec.QUALITY_FILE).read_bytes() == ONNX + b"\x1a\x04file"
    assert read.manifest["files"]["golden/01.png"]["licence"] == "CC0-1.0"
    assert read.manifest["files"]["golden/01.png"]["source"] == LABELS["source"]
    assert read.manifest["score"] == {"range": [0, 1], "higher_is_better": True}
    assert read.manifest["tensors"][spec.QUALITY_FILE]["inputs"][spec.QUALITY_RGB]["shape"] == ["n", 3, 224, 224]
    assert read.manifest["tensors"][spec.DEPTH_FILE]["inputs"][spec.DEPTH_INPUT]["shape"] == [1, 3, "h", "w"]


def test_the_id_names_contents_not_formatting(sample: Bundle) -> None:
    name, digest = sample.id.split("@")
    assert (name, len(digest)) == ("sample", 12)
    assert load_bundle(edit(sample, lambda m: None)).id == sample.id  # written again without indentation
    assert load_bundle(edit(sample, lambda m: m.update(title="other"))).id != sample.id


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (FILES[spec.QUALITY_FILE] + b"+", "has 10 bytes, sample@.* wants 9"),
        (FILES[spec.QUALITY_FILE][:-1] + b"S", "was altered: its sha256 is"),
        (None, "is missing, sample@.* lists it"),
    ],
)
def test_an_altered_or_missing_file_is_refused_by_name(sample: Bundle, contents: bytes | None, message: str) -> None:
    path = sample.path / spec.QUALITY_FILE
    path.unlink() if contents is None else path.write_bytes(contents)
    with pytest.raises(BundleError, match=rf"quality\.onnx {message}.*; copy the bundle again"):
        load_bundle(sample.path)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hosts", "a/../../secret", "a/../b", "a\\b", "c:/x", ".", "manifest.json", "a//b"]
)
def test_a_listed_path_cannot_leave_the_bundle(sample: Bundle, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    path = edit(sample, lambda m: m["files"].update({name: {"sha256": "0", "bytes": 1}}))
    with pytest.raises(BundleError, match="leaves the bundle or is not a plain path"):
        load_bundle(path)
    with pytest.raises(BundleError, match="leaves the bundle or is not a plain path"):
        write_bundle(tmp_path / "out", files={**FILES, name: b""}, **LABELS)
    assert not (tmp_path / "out").exists()


def test_a_link_cannot_leave_the_bundle_but_the_bundle_may_be_a_link(sample: Bundle, tmp_path: Path) -> None:
    (tmp_path / "by-link").symlink_to(sample.path)
    assert load_bundle(tmp_path / "by-link").id == sample.id
    inside = sample.path / spec.QUALITY_FILE
    outside = tmp_path / "outside.onnx"
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(BundleError, match="leaves the bundle"):
        load_bundle(sample.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(bundle_version=2), r"bundle_version 2, dgiqa-rt .* reads 1; pip install -U"),
        (lambda m: m.update(bundle_version=0), r"bundle_version 0, .* reads 1; rebuild"),
        (lambda m: m.pop("bundle_version"), "bundle_version None"),
        (lambda m: m.update(bundle_version=True), "bundle_version True"),
        (lambda m: m["preprocess"].update(version=9), r"preprocess version 9, .* reads 1 and 2; pip install -U"),
        (lambda m: m["preprocess"].update(version=0), r"preprocess version 0, .* reads 1 and 2; rebuild"),
        (lambda m: m["preprocess"].update(gamma=2), r"gamma.*wanted"),
        (lambda m: m["preprocess"].pop("tile"), r"preprocess has .*wanted"),
        (lambda m: m["preprocess"].update(tile=0), r"preprocess\.tile is 0, wanted 16\.\.1024"),
        (lambda m: m["preprocess"].update(short_side=16384), r"preprocess\.short_side is 16384, wanted 16\.\.2048"),
        (lambda m: m["preprocess"].update(depth_lower_bound=4096), r"depth_lower_bound is 4096, wanted 1\.\.2048"),
        (lambda m: m["preprocess"].update(tile=16), "tile is 16 and short_side 384, wanted a short_side of 1 to 16 t"),
        (lambda m: m["preprocess"].update(tile=10**9), r"preprocess\.tile is 1000000000"),
        (lambda m: m["preprocess"].update(tile="224"), r"preprocess\.tile is '224'"),
        (lambda m: m["preprocess"].update(tile=400), "tile is 400 and short_side 384, wanted a short_side of 1 to 16"),
        (lambda m: m.update(preprocess=None), "no preprocess record"),
        (lambda m: m.update(name="../x"), "name is"),
        (lambda m: m.update(name=3), "name is 3"),
        (lambda m: m["files"].pop(spec.DEPTH_FILE), r"it has only depth_lower_bound, wanted depth\.onnx with"),
        (lambda m: m["files"].pop(spec.QUALITY_FILE), r"must list quality\.onnx"),
        (lambda m: m["preprocess"].update(depth_lower_bound=0), r"it has only depth\.onnx, wanted depth\.onnx with"),
        (lambda m: m.update(files=[]), "must list"),
        (lambda m: m["files"].update({spec.DEPTH_FILE: None}), "needs bytes and sha256"),
        (lambda m: m["files"][spec.DEPTH_FILE].update(bytes=-1), "needs bytes and sha256"),
        (lambda m: m["files"][spec.DEPTH_FILE].update(bytes=10**400), "needs bytes and sha256"),
        (lambda m: m.update(model_card=["srocc"]), r"model_card is \['srocc'\], wanted an object"),
        (lambda m: m.update(title="\ud800"), "surrogates not allowed"),
    ],
)
def test_another_version_or_a_senseless_manifest_is_refused(
    sample: Bundle, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        load_bundle(edit(sample, change))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"bundle_version": NaN}', b" " * (5 << 20)]
)
def test_a_manifest_that_is_no_manifest_is_refused(sample: Bundle, text: bytes) -> None:
    (sample.path / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_bundle(sample.path)


def test_a_place_without_a_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        load_bundle(tmp_path)
    with pytest.raises(BundleError, match="is not a directory"):
        load_bundle(tmp_path / "nowhere")


def test_names_are_searched_in_order_and_an_unknown_one_lists_the_others(
    sample: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, mine, cache = tmp_path / "shipped", tmp_path / "mine", tmp_path / "cache"
    for directory, name in ((shipped, "a"), (mine, "a"), (mine, "b"), (cache / "dgiqa-rt/bundles", "c")):
        shutil.copytree(sample.path, directory / name)
    monkeypatch.setattr(bundles, "SHIPPED", shipped)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with pytest.raises(BundleError, match=r"no bundle is named 'b'; available: a, c; or give"):
        load_bundle("b")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"^mine holds no manifest\.json; wanted"):
        load_bundle("mine")
    monkeypatch.setenv("DGIQA_BUNDLES", os.pathsep.join(["", str(tmp_path / "nowhere"), str(mine)]))
    assert load_bundle("a").path == shipped / "a"
    assert load_bundle("b").path == mine / "b"
    assert [b.path for b in list_bundles()] == [shipped / "a", mine / "b", cache / "dgiqa-rt/bundles/c"]
    monkeypatch.chdir(tmp_path)
    assert load_bundle("sample").id == sample.id  # a directory here, when no name matches
    assert load_bundle("./sample").id == sample.id


@pytest.fixture
def cached(sample: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle in the user's cache."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(sample.path, tmp_path / "cache/dgiqa-rt/bundles/mine"))


def others_may_write(path: Path) -> None:
    (path / spec.QUALITY_FILE).chmod(0o666)


def others_may_replace(path: Path) -> None:
    (path / "golden").mkdir()
    (path / "golden").chmod(0o777)


def others_own(path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path / "manifest.json", 12345, 12345)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of POSIX")
@pytest.mark.parametrize("change", [others_may_write, others_may_replace, others_own])
def test_a_bundle_in_the_cache_that_others_could_have_written_needs_its_path(
    cached: Path, change: Callable[[Path], None]
) -> None:
    assert load_bundle("mine").path == cached
    change(cached)
    with pytest.raises(BundleError, match=r"can be written by others; if you trust it, .* --bundle "):
        load_bundle("mine")
    assert "can be written by others" in next(b.problem for b in list_bundles() if b.path == cached)
    assert load_bundle(cached).path == cached


def test_a_link_in_the_cache_to_a_bundle_of_ones_own_is_found(cached: Path, sample: Bundle) -> None:
    (cached.parent / "linked").symlink_to(sample.path)
    assert load_bundle("linked").id == sample.id


def test_what_is_written_here_is_believed_under_any_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = os.umask(0o002)
    try:
        write_bundle(user_cache() / "bundles/mine", files={**FILES, "golden/01.png": b"png"}, **LABELS)
    finally:
        os.umask(before)
    assert load_bundle("mine").name == "sample"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="users of POSIX")
def test_a_user_without_a_home_has_a_cache_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what Python answers where nobody is listed
    assert user_cache().is_absolute()
    assert user_cache().name == f"dgiqa-rt-{os.getuid()}"


def test_the_list_survives_a_broken_bundle(sample: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = sample.path.parent / "broken"
    shutil.copytree(sample.path, broken)
    (broken / "manifest.json").write_text("{")
    monkeypatch.setattr(bundles, "SHIPPED", sample.path.parent)
    first, second = list_bundles()
    assert (first.name, "not valid JSON" in first.problem) == ("broken", True)
    assert (second.name, second.title, second.id, second.problem) == ("sample", "a sample", sample.id, "")
    assert second.bytes == sum(map(len, FILES.values()))


def test_an_existing_bundle_is_replaced_only_when_asked(sample: Bundle) -> None:
    with pytest.raises(BundleError, match="exists; choose another place or ask to overwrite"):
        write_bundle(sample.path, files=FILES, **LABELS)
    new = write_bundle(sample.path, files={**FILES, spec.DEPTH_FILE: ONNX + ONNX}, overwrite=True, **LABELS)
    assert load_bundle(sample.path).id == new.id != sample.id
    assert [p.name for p in sample.path.parent.iterdir()] == ["sample"]


def test_overwriting_spares_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("dear")
    with pytest.raises(BundleError, match="is not a bundle, so it is not overwritten"):
        write_bundle(tmp_path / "home", files=FILES, overwrite=True, **LABELS)
    assert (tmp_path / "home" / "diary.txt").read_text() == "dear"


@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    target = tmp_path / "b"
    before = write_bundle(target, files=FILES, **LABELS).id if existing else None
    with pytest.raises(FileNotFoundError):
        write_bundle(target, files={**FILES, "x": tmp_path / "missing"}, overwrite=True, **LABELS)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_bundle(target, files=FILES, parity={"difference": float("nan")}, overwrite=True, **LABELS)
    rename = Path.rename

    def fail_at_target(self: Path, to: Path) -> Path:
        if to == target and self.name != "old":
            raise OSError("disk full")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_at_target)
    with pytest.raises(OSError, match="disk full"):
        write_bundle(target, files={**FILES, "extra": b"1"}, overwrite=True, **LABELS)
    assert [p.name for p in tmp_path.iterdir()] == (["b"] if existing else [])
    assert before is None or load_bundle(target).id == before


@pytest.mark.parametrize(
    ("change", "message"),
    [({"name": "a/b"}, "a bundle's name"), ({"files": {spec.DEPTH_FILE: b""}}, r"needs quality\.onnx")],
)
def test_arguments_that_make_no_bundle_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_bundle(tmp_path / "b", **{"files": FILES, **LABELS, **change})


def test_golden_lines_are_read_and_checked(tiny_bundle: Bundle, sample: Bundle, tmp_path: Path) -> None:
    golden = load_golden(tiny_bundle)
    assert len(golden) == 4
    assert all(g.file in tiny_bundle.manifest["files"] and 0 < g.score < 1 and g.tile_scores for g in golden)
    with pytest.raises(BundleError, match=r"no golden\.jsonl"):
        load_golden(sample)
    for number, line in enumerate(
        [b"{}\n", b"x", b"\n", b'{"file":"a","sha256":"0","tiles":"grid","score":1,"tile_scores":[1]}']
    ):
        bad = write_bundle(tmp_path / str(number), files={**FILES, "golden.jsonl": line}, **LABELS)
        with pytest.raises(BundleError, match="rebuild"):
            load_golden(bad)


def test_an_unlisted_file_is_not_handed_out(sample: Bundle) -> None:
    (sample.path / "extra").write_bytes(b"")
    with pytest.raises(BundleError, match=r"lists no file 'extra'; it has: depth\.onnx, quality\.onnx"):
        sample.file("extra")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("n" * 300, "File name too long|missing"),
        ("\ud800", "surrogates not allowed"),
        ("loop/x", "loop|missing|leaves"),
    ],
)
def test_a_name_that_the_file_system_refuses_is_a_bundles_error(sample: Bundle, name: str, reason: str) -> None:
    (sample.path / "loop").symlink_to("loop")
    with pytest.raises(BundleError, match=reason):
        load_bundle(edit(sample, lambda m: m["files"].update({name: {"sha256": "0", "bytes": 1}})))


def test_a_link_to_itself_and_a_file_that_may_not_be_read_are_a_bundles_errors(
    sample: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sample.path / spec.QUALITY_FILE
    really = Path.open

    def forbidden(self: Path, *arguments: Any, **options: Any) -> Any:  # root may read everything
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return really(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(BundleError, match=r"quality\.onnx cannot be read \(Permission den"):
        load_bundle(sample.path)
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(BundleError, match=r"quality\.onnx"):
        load_bundle(sample.path)
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle("~nobody-of-that-name/bundle")


def test_a_manifest_that_is_a_link_out_of_the_bundle_is_not_read(sample: Bundle, tmp_path: Path) -> None:
    (sample.path / "manifest.json").rename(tmp_path / "manifest.json")
    (sample.path / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(BundleError, match="is a link that leaves the bundle"):
        load_bundle(sample.path)


GOLDEN_LINE = {"file": spec.DEPTH_FILE, "tiling": "grid", "score": 0.5, "tile_scores": [0.5]}


@pytest.mark.parametrize(
    "change",
    [
        {"score": 10**400},
        {"score": "1e999"},
        {"tile_scores": [float("nan")]},
        {"tile_scores": 3},
        {"file": []},
        {"sha256": {}},
        {"tiling": 5},
        {"tiling": "official:0"},
        {"tiling": "official:5000"},
    ],
)
def test_a_golden_line_that_cannot_be_scored_is_a_bundles_error(tmp_path: Path, change: dict[str, Any]) -> None:
    digest = hashlib.sha256(FILES[spec.DEPTH_FILE]).hexdigest()
    lines = [json.dumps(GOLDEN_LINE | {"sha256": digest} | extra).encode() for extra in ({}, change)]
    good, bad = (
        write_bundle(tmp_path / str(i), files={**FILES, "golden.jsonl": line}, **LABELS) for i, line in enumerate(lines)
    )
    assert [golden.score for golden in load_golden(good)] == [0.5]
    with pytest.raises(BundleError, match=r"golden\.jsonl line 1"):
        load_golden(bad)


@pytest.mark.parametrize("part", ["manifest bytes", "manifest", "golden bytes", "golden"])
def test_a_damaged_bundle_is_a_dgiqa_error_whatever_is_damaged(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Whoever reads a bundle gets what it says or an error of this package: networks, golden lines, `models`."""
    path, random = Path(shutil.copytree(tiny_bundle.path, tmp_path / "b")), Random(5)
    monkeypatch.setattr(bundles, "SHIPPED", tmp_path)
    for _ in range(60):
        damage_bundle(path, tiny_bundle, part, random)
        for summary in list_bundles():
            _print_bundle(_bundle_facts(summary))
        with contextlib.suppress(DgiqaError):  # anything else fails the test
            loaded = load_bundle(path)
            with Scorer(loaded, threads=1) as scorer:
                scorer.score(np.zeros((90, 120, 3), np.uint8))
            load_golden(loaded)


def damage_bundle(path: Path, whole: Bundle, part: str, random: Random) -> None:
    """Make a copy of a bundle differ from it in its manifest, or in a golden line whose hash is then made to fit."""
    manifest, lines = (whole.path / "manifest.json").read_bytes(), whole.file("golden.jsonl").read_bytes().splitlines()
    document = json.loads(manifest)
    if part.startswith("golden"):
        line = random.randrange(len(lines))
        lines[line] = damaged(lines[line], random) if part.endswith("bytes") else reshaped(lines[line], random)
        data = b"\n".join(lines)
        (path / "golden.jsonl").write_bytes(data)
        document["files"]["golden.jsonl"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        changed = json.dumps(document).encode()
    else:
        changed = damaged(manifest, random) if part.endswith("bytes") else reshaped(manifest, random)
    (path / "manifest.json").write_bytes(changed)


def reshaped(text: bytes, random: Random) -> bytes:
    return json.dumps(misshapen(json.loads(text), random)).encode()
