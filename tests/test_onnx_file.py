"""A network's file is ONNX and stands alone: weights in other files are refused, wherever the graph names them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dgiqa import spec
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.errors import BundleError
from dgiqa.onnx_file import check_stands_alone

onnx = pytest.importorskip("onnx")


def external() -> Any:
    """A tensor whose values lie elsewhere."""
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../w.bin"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def sparse() -> Any:
    return onnx.SparseTensorProto(values=external(), dims=[1])


def inner() -> Any:
    return onnx.GraphProto(initializer=[external()])


def node(**fields: Any) -> Any:
    return onnx.NodeProto(op_type="If", attribute=[onnx.AttributeProto(name="a", **fields)])


PLACES = {
    "initializer": onnx.GraphProto(initializer=[external()]),
    "sparse initializer": onnx.GraphProto(sparse_initializer=[sparse()]),
    "constant": onnx.GraphProto(node=[node(t=external())]),
    "constants": onnx.GraphProto(node=[node(tensors=[external()])]),
    "sparse constant": onnx.GraphProto(node=[node(sparse_tensor=sparse())]),
    "sparse constants": onnx.GraphProto(node=[node(sparse_tensors=[sparse()])]),
    "branch": onnx.GraphProto(node=[node(g=inner())]),
    "branches": onnx.GraphProto(node=[node(graphs=[inner()])]),
}


def models() -> dict[str, Any]:
    made = {name: onnx.ModelProto(ir_version=9, graph=graph) for name, graph in PLACES.items()}
    function = onnx.FunctionProto(node=[node(t=external())])
    default = onnx.FunctionProto(attribute_proto=[onnx.AttributeProto(name="a", t=external())])
    training = onnx.TrainingInfoProto(algorithm=inner())
    made["function"] = onnx.ModelProto(ir_version=9, functions=[function])
    made["default of a function"] = onnx.ModelProto(ir_version=9, functions=[default])
    made["training"] = onnx.ModelProto(ir_version=9, training_info=[training])
    return made


@pytest.mark.parametrize("place", models())
def test_weights_in_another_file_are_found_wherever_a_tensor_may_be(place: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(models()[place].SerializeToString())
    with pytest.raises(BundleError, match="keeps weights in other files, which no hash here covers; save it as one"):
        check_stands_alone(tmp_path / "m.onnx")


def test_the_files_of_a_bundle_stand_alone_and_may_say_location(tiny_bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle.file(spec.QUALITY_FILE))
    model.graph.initializer[0].data_location = onnx.TensorProto.DEFAULT
    model.graph.node[0].doc_string = "location"
    onnx.save(model, tmp_path / "m.onnx")
    check_stands_alone(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<?xml version='1.0'?><net/>",
        b"PK\3\4",
        b"\x08",
        b"\x08\x09\x3a\x7f",
        b"\x08\x09\x0b\x0c",
        b"\x08" + b"\xff" * 20,
    ],
    ids=["empty", "OpenVINO's XML", "zip", "a number cut", "a graph cut", "a group", "an endless number"],
)
def test_what_is_no_onnx_is_said_to_be_none(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"m\.onnx is not an ONNX file"):
        check_stands_alone(tmp_path / "m.onnx")


def relisted(bundle: Bundle, folder: Path, name: str, data: bytes) -> Path:
    """A copy of a bundle in which a file has other contents, and the manifest says so."""
    shutil.copytree(bundle.path, folder)
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("location", ["w.bin", "../w.bin"])
def test_a_bundle_whose_hashes_do_not_cover_its_weights_is_refused(
    tiny_bundle: Bundle, tmp_path: Path, location: str
) -> None:
    model = onnx.load(tiny_bundle.file(spec.QUALITY_FILE))
    tensor = model.graph.initializer[0]
    raw = onnx.numpy_helper.to_array(tensor).tobytes()
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    folder = relisted(tiny_bundle, tmp_path / "b", spec.QUALITY_FILE, model.SerializeToString())
    (folder / location).write_bytes(raw)
    with pytest.raises(BundleError, match="keeps weights in other files"):
        load_bundle(folder)


def test_openvinos_own_format_under_the_name_of_an_onnx_file_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(tiny_bundle.file(spec.QUALITY_FILE))
    openvino.save_model(model, tmp_path / "quality.xml")
    data = (tmp_path / "quality.xml").read_bytes()
    folder = relisted(tiny_bundle, tmp_path / "b", spec.QUALITY_FILE, data)
    shutil.copy(tmp_path / "quality.bin", folder)
    assert openvino.Core().read_model(folder / spec.QUALITY_FILE)  # it would run, with weights that nobody hashed
    with pytest.raises(BundleError, match="is not an ONNX file"):
        load_bundle(folder)
