"""An engine is found only where it belongs, and only as it was built; two builders at once leave one whole engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_S

import dgiqa
from dgiqa import spec
from dgiqa.bundle import Bundle, write_bundle
from dgiqa.errors import BackendError, EngineError
from dgiqa.runtime import backends, engines
from dgiqa.runtime.engines import Engine
from dgiqa.scorer import Scorer
from dgiqa.store import locked, sha256_of

pytest.importorskip("onnxruntime")
CERTIFICATE = {"max_difference": 0.0, "share": 0.0, "tolerance": 1.0, "images": 4}
CERTIFICATE |= {"bytes": 1, "share_of_fp32_bytes": 0.5, "types": {}, "layers": {}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def keep(bundle: Bundle, precision: str = "fp16", **changes: object) -> Engine:
    """Store the bundle's own files as an engine, under a key with these changes."""
    key = engines.engine_key(bundle, "onnxruntime", precision) | changes
    with locked(engines.directory(key)), engines.scratch(key) as folder:
        for name in engines.NETWORKS:
            (folder / name).write_bytes(bundle.file(name).read_bytes())
        (folder / "scratch.tmp").write_text("left by a tool")
        return engines.store(folder, key, {name: folder / name for name in engines.NETWORKS}, CERTIFICATE)


def test_auto_takes_the_engine_that_is_there(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_lacking", lambda name: "" if name in ("openvino", "onnxruntime") else "is missing")
    monkeypatch.setattr(engines, "identity", lambda name, device: {"engine": name, "version": "1", "device": "x"})
    with pytest.raises(EngineError, match="for openvino is built"):
        engines.find(tiny_bundle, "auto", "fp16")
    stored = keep(tiny_bundle)
    assert engines.find(tiny_bundle, "auto", "fp16") == stored
    preferred = keep(tiny_bundle, engine="openvino")
    assert engines.find(tiny_bundle, "auto", "fp16") == preferred


def forge(engine: Engine, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite an engine's record as `store` would have written it."""
    path = engine.path / engines.RECORD
    record = change(json.loads(path.read_text()))
    path.write_text(json.dumps(record | {"sha256": engines._digest(record)}))


def test_what_was_stored_is_found_whole(tiny_bundle: Bundle) -> None:
    stored = keep(tiny_bundle)
    found = engines.find(tiny_bundle, "onnxruntime", "fp16")
    assert found == stored
    assert sorted(p.name for p in found.path.iterdir()) == ["depth.onnx", "engine.json", "quality.onnx"]
    assert found.files[spec.DEPTH_FILE].read_bytes() == tiny_bundle.file(spec.DEPTH_FILE).read_bytes()
    assert found.certificate == CERTIFICATE
    assert found.name.startswith("tiny-fp16-onnxruntime-")
    assert [engine.name for engine in engines.list_engines()] == [found.name]
    assert found.bytes == sum(p.stat().st_size for p in found.files.values())


def test_an_engine_takes_the_place_of_an_older_one_of_its_key_and_leaves_nothing_beside_it(tiny_bundle: Bundle) -> None:
    older = keep(tiny_bundle)
    newer = keep(tiny_bundle)
    assert (newer.path, newer.created > older.created) == (older.path, True)
    assert [path.name for path in older.path.parent.iterdir() if path.suffix != ".lock"] == [older.name]
    assert engines.load(newer.path, tiny_bundle) == newer


def test_a_missing_engine_names_the_command_that_builds_it(tiny_bundle: Bundle) -> None:
    keep(tiny_bundle, "int8")
    command = rf"dgiqa-rt build --bundle {re.escape(str(tiny_bundle.path))} --fp16 --backend onnxruntime$"
    with pytest.raises(EngineError, match=rf"no fp16 engine of tiny@.* for onnxruntime is built.*; {command}"):
        engines.find(tiny_bundle, "onnxruntime", "fp16")


@pytest.mark.parametrize(
    ("change", "sides"),
    [
        ({"version": "1.2.3"}, r"built for version 1\.2\.3; here is version \d"),
        ({"quantizer": 1}, rf"built for quantizer 1; here is quantizer {spec.QUANTIZER_VERSION}"),
        ({"device": "NVIDIA Z1"}, r"built for device NVIDIA Z1; here is device "),
        (
            {"onnx": dict.fromkeys(engines.NETWORKS, "f" * 64)},
            "built for networks ffffffffffff; here is networks [0-9a-f]{12}",
        ),
    ],
)
def test_a_stale_engine_names_both_sides_and_is_not_loaded(
    tiny_bundle: Bundle, change: dict[str, object], sides: str
) -> None:
    stale = keep(tiny_bundle, **change)
    for attempt in (
        lambda: engines.find(tiny_bundle, "onnxruntime", "fp16"),
        lambda: engines.load(stale.path, tiny_bundle),
        lambda: Scorer(tiny_bundle, backend="onnxruntime", precision="fp16"),
        lambda: Scorer(tiny_bundle, engine=stale.path),
    ):
        with pytest.raises(EngineError, match=rf"is stale: {sides}.*; build it again: dgiqa-rt build"):
            attempt()
    fresh = keep(tiny_bundle)
    assert engines.find(tiny_bundle, "onnxruntime", "fp16") == fresh


def test_an_engine_of_before_quantizers_had_versions_is_stale_and_one_that_nothing_quantised_is_not(
    tiny_bundle: Bundle,
) -> None:
    kept = keep(tiny_bundle)
    forge(kept, lambda record: record | {"key": {k: v for k, v in record["key"].items() if k != "quantizer"}})
    with pytest.raises(EngineError, match="is stale: built for quantizer none; here is quantizer"):
        engines.find(tiny_bundle, "onnxruntime", "fp16")
    assert "quantizer" not in engines.engine_key(tiny_bundle, "onnxruntime", "fp32")


def test_the_newest_of_several_shapes_is_taken(tiny_bundle: Bundle) -> None:
    keep(tiny_bundle, profile={"batch": [1, 8, 32]})
    newest = keep(tiny_bundle, profile={"batch": [1, 1, 1]})
    assert engines.find(tiny_bundle, "onnxruntime", "fp16").path == newest.path
    assert len(engines.list_engines()) == 2


def test_an_altered_file_is_refused(tiny_bundle: Bundle) -> None:
    engine = keep(tiny_bundle)
    path = engine.files[spec.QUALITY_FILE]
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(EngineError, match=r"quality\.onnx is missing or was altered; .*--force"):
        engines.find(tiny_bundle, "onnxruntime", "fp16")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of POSIX")
def test_what_others_could_have_written_is_not_loaded(tiny_bundle: Bundle, tmp_path: Path) -> None:
    engine = keep(tiny_bundle)
    engine.path.chmod(0o777)
    with pytest.raises(EngineError, match="no fp16 engine"):
        engines.find(tiny_bundle, "onnxruntime", "fp16")
    engine.path.chmod(0o700)
    real = engine.files[spec.DEPTH_FILE]
    real.rename(tmp_path / "elsewhere")
    real.symlink_to(tmp_path / "elsewhere")
    assert engines.list_engines() == []
    assert "belongs to or can be written by others" in engines.damaged()[engine.name]
    (tmp_path / "elsewhere").replace(real)
    assert [found.name for found in engines.list_engines()] == [engine.name]
    engine.path.chmod(0o755)
    real.chmod(0o666)  # anybody could have written over it
    assert engines.list_engines() == []
    real.chmod(0o644)
    engines.engines_folder().chmod(0o777)
    assert engines.list_engines() == []
    assert "can be written by others; chmod 700 it" in engines.damaged()[engine.name]
    with pytest.raises(EngineError, match="can be written by others, so nothing in it is loaded; chmod 700 it"):
        keep(tiny_bundle, "int8")


@pytest.mark.skipif(getattr(os, "getuid", lambda: 1)() != 0, reason="only root can give files away")
def test_what_belongs_to_somebody_else_is_not_loaded(tiny_bundle: Bundle) -> None:
    engine = keep(tiny_bundle)
    os.chown(engine.files[spec.DEPTH_FILE], 12345, 12345)
    assert engines.list_engines() == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": 99}',
        '{"format": 2, "key": {}, "networks": {}, "files": {}}',
        '{"format": 2, "sha256": []}',
    ],
)
def test_a_damaged_record_is_left_out_and_named(tiny_bundle: Bundle, text: str) -> None:
    engine = keep(tiny_bundle)
    (engine.path / engines.RECORD).write_text(text)
    assert engines.list_engines() == []
    with pytest.raises(EngineError, match=r"is not an engine|has format 99"):
        engines.load(engine.path, tiny_bundle)


def places(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where something stands in a document."""
    yield at
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*at, name))


def edited(record: Any, at: tuple[str, ...], value: Any) -> Any:
    if not at:
        return value
    return {**record, at[0]: edited(record[at[0]], at[1:], value)}


def test_a_record_that_was_edited_anywhere_is_refused(tiny_bundle: Bundle) -> None:
    engine = keep(tiny_bundle)
    path = engine.path / engines.RECORD
    whole = json.loads(path.read_text())
    for at in places(whole):
        for value in (None, -1, 10**400, "x", [], {"../x": "y"}):
            path.write_text(json.dumps(edited(whole, at, value)))
            assert engines.list_engines() == []
            assert list(engines.damaged()) == [engine.name]
            with pytest.raises(EngineError, match=r"is not an engine|has format"):
                engines.load(engine.path, tiny_bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../depth.onnx": {"sha256": ""}}},
        {"networks": {spec.DEPTH_FILE: "/tmp/depth.onnx"}},
        {"key": {"plugins": {"/tmp/evil.so": ""}}},
        {"key": {"plugins": {"..": ""}}},
    ],
)
def test_files_of_a_forged_record_do_not_lie_elsewhere(tiny_bundle: Bundle, change: dict[str, Any]) -> None:
    engine = keep(tiny_bundle)
    forge(engine, lambda record: record | {name: {**record[name], **value} for name, value in change.items()})
    with pytest.raises(EngineError, match=r"is not an engine \(its files \['.*'\] are elsewhere"):
        engines.load(engine.path, tiny_bundle)
    assert "are elsewhere" in engines.damaged()[engine.name]


def test_a_path_that_the_user_names_is_loaded_from_anywhere(tiny_bundle: Bundle, tmp_path: Path, photos: dict) -> None:
    moved = keep(tiny_bundle).path.rename(tmp_path / "elsewhere")
    assert engines.list_engines() == []
    with Scorer(tiny_bundle, engine=moved) as scorer:
        assert scorer.backend.endswith(" fp16")
        assert 0 < scorer.score(photos["coffee"]).value < 1


def test_removing_takes_names_only(tiny_bundle: Bundle, tmp_path: Path) -> None:
    engine = keep(tiny_bundle)
    (tmp_path / "cache" / "dgiqa-rt" / "bundles").mkdir()
    for name in ("../bundles", ".", "", "nothing", f".{engine.name}.lock"):
        with pytest.raises(EngineError, match="no engine is named"):
            engines.remove(name)
    assert engines.remove(engine.name) == engine.path
    assert engines.list_engines() == []
    keep(tiny_bundle)
    assert engines.clear() > 0
    assert not engines.engines_folder().exists()
    assert (tmp_path / "cache" / "dgiqa-rt" / "bundles").is_dir()


def test_what_cannot_be_removed_is_not_said_to_be(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tiny_bundle)

    def read_only(path: object, *arguments: object, **options: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(os, "rmdir", read_only)
    with pytest.raises(OSError, match="Read-only file system"):
        engines.clear()


def test_a_backend_that_is_not_here_is_an_error(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="tensorrt"):
        engines.engine_key(tiny_bundle, "tensorrt", "fp16")


def test_another_bundle_of_the_same_name_is_stale(tiny_bundle: Bundle, tiny_graphs: dict, tmp_path: Path) -> None:
    keep(tiny_bundle)
    files = tiny_graphs | {spec.QUALITY_FILE: tiny_graphs[spec.QUALITY_FILE] + b"\x1a\x00"}
    other = write_bundle(
        tmp_path / "tiny",
        name="tiny",
        title="other",
        files=files,
        licence="x",
        source="y",
        preprocess=tiny_bundle.preprocess,
    )
    with pytest.raises(EngineError, match="is stale: built for networks"):
        engines.find(other, "onnxruntime", "fp16")


BUILDER = """
import sys, time
from dgiqa.builder import build
from dgiqa.builder.quantize import quantize_bundle
import dgiqa.builder.quantize as room

def slowly(*arguments, **options):
    print("quantising", flush=True)
    time.sleep(1)
    return quantize_bundle(*arguments, **options)

room.quantize_bundle = slowly
made = build.build(sys.argv[1], backend="onnxruntime", precision="fp16")
print(made.path, flush=True)
"""


def test_two_processes_that_build_the_same_engine_make_it_once(tiny_bundle: Bundle) -> None:
    pytest.importorskip("onnx")
    path = os.pathsep.join(filter(None, [str(Path(dgiqa.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", BUILDER, str(tiny_bundle.path)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=PATIENCE_S)[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(map(len, outputs)) == [1, 2], "one builds, the other waits and takes what was built"
    assert outputs[0][-1] == outputs[1][-1]
    assert str(engines.find(tiny_bundle, "onnxruntime", "fp16").path) == outputs[0][-1]
    left = [p.name for p in engines.engines_folder().iterdir() if p.is_dir()]
    assert left == [Path(outputs[0][-1]).name]


def test_a_builder_that_dies_leaves_neither_a_lock_nor_an_engine(tiny_bundle: Bundle) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from dgiqa.bundle import load_bundle; from dgiqa.runtime import engines; from dgiqa.store import locked\n"
        "key = engines.engine_key(load_bundle(sys.argv[1]), 'onnxruntime', 'fp16')\n"
        "with locked(engines.directory(key)), engines.scratch(key) as folder:\n"
        "    (folder / 'depth.onnx').write_text('half')\n"
        "    os._exit(9)\n"
    )
    path = os.pathsep.join(filter(None, [str(Path(dgiqa.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", code, str(tiny_bundle.path)]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False).returncode == 9
    assert engines.list_engines() == []
    assert len([path for path in engines.engines_folder().iterdir() if path.is_dir()]) == 1
    made = keep(tiny_bundle)
    assert len(engines.list_engines()) == 1
    assert [path.name for path in engines.engines_folder().iterdir() if path.is_dir()] == [made.name]


def test_removing_an_engine_takes_what_a_killed_builder_left(tiny_bundle: Bundle) -> None:
    made = keep(tiny_bundle)
    (made.path.parent / f".{made.name}.x3f").mkdir()
    engines.remove(made.name)
    assert [path.name for path in made.path.parent.iterdir()] == [f".{made.name}.lock"]


def test_what_others_build_and_remove_meanwhile_does_not_matter(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = keep(tiny_bundle)
    gone = made.path.parent / ".other.x3f"
    really = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: [*really(folder), *([gone] if folder == gone.parent else [])])
    assert engines.find(tiny_bundle, "onnxruntime", "fp16") == made
    assert keep(tiny_bundle, "int8").precision == "int8"


def test_an_engine_with_weights_in_another_file_is_refused(tiny_bundle: Bundle) -> None:
    onnx = pytest.importorskip("onnx")
    made = keep(tiny_bundle)
    model = onnx.load(made.files[spec.QUALITY_FILE])
    onnx.save(model, made.files[spec.QUALITY_FILE], save_as_external_data=True, location="w.bin", size_threshold=0)
    hashed = {spec.QUALITY_FILE: {"sha256": sha256_of(made.files[spec.QUALITY_FILE])}}
    forge(made, lambda record: record | {"files": record["files"] | hashed})
    with pytest.raises(
        EngineError, match=r"quality\.onnx keeps weights in other files.*; or build it again: dgiqa-rt build"
    ):
        engines.load(made.path, tiny_bundle)
