"""The Open Inference Protocol, with Triton's own client; and the Triton repository, by Triton's own schema."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_serve import Server

from dgiqa import spec
from dgiqa.bundle import Bundle
from dgiqa.cli import app
from dgiqa.runtime.session import open_session
from dgiqa.scorer import Scorer
from dgiqa.serve import triton_model, v2
from dgiqa.serve.intake import Limits
from dgiqa.serve.triton import network_name, write_repository

CLIENT = importlib.util.find_spec("tritonclient")


@pytest.fixture(scope="module")
def server(tiny_bundle: Bundle) -> Iterator[Server]:
    with Scorer(tiny_bundle, threads=1) as scorer:
        server = Server(scorer, Limits(16, body=1 << 20, images=4))
        yield server
        server.close()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)


# ---- with Triton's client ----


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    http = pytest.importorskip("tritonclient.http")
    with http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def tensor(name: str, values: np.ndarray[Any, Any], kind: str, *, binary: bool = True) -> Any:
    from tritonclient import http

    made = http.InferInput(name, values.shape, kind)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def test_the_client_finds_the_server_and_the_model(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert [tensor["name"] for tensor in client.get_model_metadata("tiny")["outputs"]] == ["SCORE", "STD_ERROR", "ROW"]
    assert not client.is_model_ready("other")


def test_encoded_images_and_pixels_give_the_scores_of_the_scorer(
    client: Any, server: Server, pixels: np.ndarray[Any, Any], encode: Any
) -> None:
    wanted = [server.scorer.score(each).value for each in pixels]
    encoded = np.array([encode(each) for each in pixels], np.object_)
    for asked in (
        tensor(v2.ENCODED, encoded, "BYTES"),
        tensor(v2.PIXELS, pixels, "UINT8"),
        tensor(v2.PIXELS, (pixels / 255).astype(np.float32), "FP32"),
        tensor(v2.PIXELS, pixels, "UINT8", binary=False),
    ):
        answer = client.infer("tiny", [asked], request_id="7")
        assert answer.as_numpy("SCORE") == pytest.approx(wanted, abs=2e-3)  # rows round; FP32 pixels round twice
        rows = [json.loads(row) for row in answer.as_numpy("ROW")]
        assert [row["status"] for row in rows] == ["ok", "ok"]
        assert answer.get_response()["id"] == "7"
    assert client.infer("tiny", [tensor(v2.PIXELS, pixels[0], "UINT8")], model_version="1").as_numpy("SCORE").shape == (
        1,
    )


def test_outputs_are_those_asked_for_and_a_bad_image_is_not_a_number(client: Any, encode: Any) -> None:
    from tritonclient import http

    images = np.array([encode(np.zeros((90, 90, 3), np.uint8)), b"no image"], np.object_)
    wanted = [http.InferRequestedOutput("ROW", binary_data=False), http.InferRequestedOutput("SCORE", binary_data=True)]
    answer = client.infer("tiny", [tensor(v2.ENCODED, images, "BYTES")], outputs=wanted)
    assert np.isnan(answer.as_numpy("SCORE")).tolist() == [False, True]
    assert "not an image" in json.loads(answer.as_numpy("ROW")[1])["error"]
    assert answer.as_numpy("STD_ERROR") is None
    with pytest.raises(
        http.InferenceServerException if hasattr(http, "InferenceServerException") else Exception, match="outputs are"
    ):
        client.infer("tiny", [tensor(v2.ENCODED, images, "BYTES")], outputs=[http.InferRequestedOutput("DEPTH")])


# ---- by hand ----


def infer(server: Server, document: Any, tail: bytes = b"", length: str | None = None) -> tuple[int, Any]:
    head = json.dumps(document).encode()
    headers = {v2.LENGTH.replace("-", "_"): length or str(len(head))} if tail or length else {}
    return server.post("/v2/models/tiny/infer", head + tail, **headers)


def test_json_alone_is_enough_and_nan_is_null(server: Server, encode: Any) -> None:
    import base64

    data = [base64.b64encode(each).decode() for each in (encode(np.zeros((90, 90, 3), np.uint8)), b"no")]
    asked = {"inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [2], "data": data}]}
    status, answer = infer(server, asked)
    assert status == 200
    score, error, _ = answer["outputs"]
    assert score["data"][1] is None
    assert error["data"][1] is None


def test_requests_that_the_protocol_does_not_know_are_400(server: Server) -> None:
    def asked(**changes: Any) -> dict[str, Any]:
        return {"inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": ["QQ=="]} | changes]}

    binary = {"parameters": {"binary_data_size": 5}, "data": None}
    cases: list[tuple[Any, ...]] = [
        ({},),
        ([],),
        ({"inputs": []},),
        ({"inputs": [1]},),
        (asked(name="OTHER"),),
        (asked(datatype="FP64"),),
        (asked(shape=[2]),),
        (asked(shape=[-1]),),
        (asked(shape=[True]),),
        (asked(shape=[2**62, 2**62]),),
        (asked(data=["*"]),),
        (asked(data=None),),
        (asked(parameters=[1]),),
        (asked(**binary), b"four"),
        (asked(**binary), struct.pack("<I", 2**32 - 1) + b"x"),
        (asked(**binary) | {"parameters": {"binary_data_size": -1}}, b"x"),
        (asked(name="PIXELS", datatype="UINT8", shape=[1, 1, 3], data=[1, 2]),),
        (asked(name="PIXELS", datatype="UINT8", shape=[1, 1, 3], data=[1, 2, 300]),),
        (asked(name="PIXELS", datatype="FP32", shape=[1, 1, 3], data=["a", {}, None]),),
        (asked(name="PIXELS", datatype="UINT8", shape=[1, 1, 4], data=[1, 2, 3, 4]),),
        (asked(shape=[5], data=["QQ=="] * 5),),
        (asked() | {"outputs": [{"name": "DEPTH"}]},),
        (asked() | {"outputs": 3},),
        (asked(), b"", "99999"),
        (asked(), b"", "-1"),
        (asked(), b"", "x"),
    ]
    for case in cases:
        status, answer = infer(server, *case)
        assert status == 400, case
        assert answer["error"]
    assert server.post("/v2/models/..%2f..%2fetc%2fpasswd/infer", b"{}")[0] == 404
    assert server.post("/v2/models/tiny/versions/2/infer", b"{}")[0] == 404


# ---- the Triton repository ----


def config(path: Path) -> Any:
    """A model's configuration, read by Triton's published schema."""
    if CLIENT is None or CLIENT.origin is None:
        pytest.skip("needs tritonclient")
    text_format = pytest.importorskip("google.protobuf.text_format")
    schema = importlib.util.spec_from_file_location(
        "schema", Path(CLIENT.origin).parent / "grpc" / "model_config_pb2.py"
    )
    assert schema is not None
    assert schema.loader is not None
    module = importlib.util.module_from_spec(schema)
    schema.loader.exec_module(module)
    return text_format.Parse((path / "config.pbtxt").read_text(), module.ModelConfig())


def test_the_repository_is_what_tritons_schema_wants(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = write_repository(tmp_path / "models", tiny_bundle, gpu=True, instances=3, gate=0.5)
    found = {path.name: config(path) for path in out.iterdir()}
    assert set(found) == {"tiny", "tiny_depth", "tiny_quality"}
    top, depth, quality = (found[name] for name in ("tiny", "tiny_depth", "tiny_quality"))
    assert [each.name for each in (*top.input, *top.output)] == ["IMAGE", "SCORE", "STD_ERROR", "ROW"]
    assert (top.backend, top.instance_group[0].count, top.parameters["gate"].string_value) == ("python", 3, "0.5")
    assert (depth.max_batch_size, list(depth.input[0].dims)) == (0, [1, 3, -1, -1])
    assert quality.HasField("dynamic_batching")
    assert quality.max_batch_size >= 8
    assert quality.instance_group[0].kind == quality.instance_group[0].KIND_GPU
    for each in (depth, quality):
        sizes = {tensor.name: [n for n in tensor.dims if n > 0] for tensor in each.input}
        for name, warm in each.model_warmup[0].inputs.items():
            assert all(n > 0 for n in warm.dims)
            assert set(sizes[name]) <= set(warm.dims)
    for each in tiny_bundle.networks:
        model = out / network_name(tiny_bundle, each.file) / "1" / "model.onnx"
        assert model.read_bytes() == tiny_bundle.file(each.file).read_bytes()


def test_a_folder_that_is_there_is_kept(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError, match="already"):
        write_repository(tmp_path, tiny_bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


class FakeTriton:
    """`triton_python_backend_utils`, whose server runs the repository's files, batches with a column of their own."""

    TRITONSERVER_MEMORY_CPU = 0
    TritonError, PreferredMemory = RuntimeError, staticmethod(lambda *where: where)
    Tensor = staticmethod(lambda name, array: SimpleNamespace(name=name, array=array, as_numpy=lambda: array))

    def __init__(self, root: Path) -> None:
        self.root = root
        self.InferenceRequest = self._request

    def _request(self, *, model_name: str, requested_output_names: list[str], inputs: list[Any], **_: Any) -> Any:
        def run() -> Any:
            session = open_session(self.root / model_name / "1" / "model.onnx", "onnxruntime", threads=1)
            found = session.run({each.name: each.array for each in inputs})
            if model_name.endswith("quality"):
                found[spec.QUALITY_OUTPUT] = found[spec.QUALITY_OUTPUT][:, None]
            return SimpleNamespace(has_error=lambda: False, tensors={n: found[n] for n in requested_output_names})

        return SimpleNamespace(exec=run)

    @staticmethod
    def InferenceResponse(tensors: Any = None, error: Any = None) -> Any:  # noqa: N802 - Triton's name
        return SimpleNamespace(tensors={each.name: each.array for each in tensors or ()}, error=error)

    def get_output_tensor_by_name(self, answer: Any, name: str) -> Any:
        return self.Tensor(name, answer.tensors[name])

    get_input_tensor_by_name = staticmethod(lambda request, name: request)


def test_the_python_model_scores_as_the_scorer_does(
    tiny_bundle: Bundle, tmp_path: Path, pixels: np.ndarray[Any, Any], encode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_repository(tmp_path / "models", tiny_bundle, gate=0.0)
    fake = FakeTriton(out)
    monkeypatch.setattr(triton_model.importlib, "import_module", lambda name: fake)
    model = triton_model.TritonPythonModel()
    arguments = {"model_config": '{"parameters": {"gate": {"string_value": "0.0"}}}', "model_version": "1"}
    model.initialize(arguments | {"model_repository": str(out / "tiny")})
    images = np.array([encode(pixels[0]), b"no image", encode(pixels[1])], np.object_)
    (answer,) = model.execute([fake.Tensor("IMAGE", images)])
    with Scorer(tiny_bundle, threads=1) as scorer:
        wanted = [scorer.score(each).value for each in pixels]
    assert answer.tensors["SCORE"][[0, 2]] == pytest.approx(wanted, abs=1e-6)
    rows = [json.loads(row) for row in answer.tensors["ROW"]]
    assert [row["verdict"] for row in rows] == ["pass", None, "pass"]
    assert np.isnan(answer.tensors["SCORE"][1])


def test_the_command_writes_one(tiny_bundle: Bundle, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    end = CliRunner().invoke(app, ["triton-repo", str(tmp_path / "m"), "--bundle", str(tiny_bundle.path)])
    assert end.exit_code == 0, end.output
    assert (tmp_path / "m" / "tiny" / "1" / "model.py").is_file()
