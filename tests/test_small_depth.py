"""The small depth network: its interface, its export, its file, and that training teaches it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dgiqa.errors import DgiqaError, WeightsError
from dgiqa.nn.checkpoints import load_small_depth
from dgiqa.nn.depth import SmallDepth, SmallDepthConfig, save_small_depth
from recipes.small import scenes, train_depth
from recipes.small.train_depth import TrainConfig, add_detail, augment, depth_loss, stereo_check, train

NARROW = SmallDepthConfig(widths=(8, 8, 16, 16, 16), decoder=(16, 16, 8), blocks=(1, 1, 1, 2))


@pytest.fixture
def model() -> SmallDepth:
    torch.manual_seed(0)
    return SmallDepth().eval()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    pictures = [scenes.render(seed, [], 64, 96) for seed in range(8)]
    rgb, inverse_depth = (np.stack(part) for part in zip(*pictures, strict=True))
    np.savez(folder / "64x96-000000.npz", rgb=rgb, inverse_depth=inverse_depth.astype(np.float16))
    return folder


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 64)])
def test_depth_has_the_images_size_and_no_negative(model, size):
    with torch.no_grad():
        depth = model(torch.randn(2, 3, *size))
    assert depth.shape == (2, *size)
    assert depth.dtype == torch.float32
    assert depth.min() >= 0


def test_the_network_is_small(model):
    assert sum(p.numel() for p in model.parameters()) <= 1_700_000


def test_position_matters(model):
    """A picture without content still tells top from bottom: the coordinates arrive."""
    with torch.no_grad():
        depth = model(torch.zeros(1, 3, 256, 256))[0]
    assert (depth[96:112, 96:160] - depth[144:160, 96:160]).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_agrees_at_every_size(model, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    path = tmp_path / "depth.onnx"
    dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    example = (torch.randn(1, 3, 64, 96),)
    torch.onnx.export(model, example, path, dynamo=True, opset_version=20, dynamic_shapes=(dynamic,), verbose=False)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    for size in ((64, 96), (96, 64), (256, 352)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected = model(image).numpy()
        (exported,) = session.run(None, {entry.name: image.numpy()})
        np.testing.assert_allclose(exported, expected, atol=1e-5)


def test_a_file_brings_back_network_and_config(tmp_path):
    model = SmallDepth(NARROW).eval()
    save_small_depth(model, str(tmp_path / "depth.safetensors"))
    again = load_small_depth(str(tmp_path / "depth.safetensors"))
    image = torch.randn(1, 3, 64, 64)
    assert again.config == NARROW
    assert torch.equal(again(image), model(image))


def test_another_models_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="not small_depth"):
        load_small_depth(str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read"), (b"", "is empty"), (b"no safetensors file", "is not a checkpoint")],
)
def test_a_file_that_is_missing_or_damaged_is_named(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "depth.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"depth\.safetensors {reason}"):
        load_small_depth(str(tmp_path / "depth.safetensors"))


def test_the_loss_ignores_scale_and_shift_but_not_sign():
    target = torch.rand(2, 32, 32)
    assert depth_loss(3 * target + 5, target) < 1e-3
    assert depth_loss(-target, target) > depth_loss(torch.rand(2, 32, 32), target) > 0.3


def test_the_loss_sees_every_picture_alone():
    target = torch.rand(2, 32, 32)
    scaled = target * torch.tensor([1.0, 100.0])[:, None, None]
    assert depth_loss(scaled, target) < 1e-3


def test_augmentation_keeps_depth_under_its_picture():
    depth = np.tile(np.linspace(0.1, 1, 64, dtype=np.float32), (32, 1))
    rgb = np.repeat((depth * 200).astype(np.uint8)[..., None], 3, 2)
    mirrored = 0
    for seed in range(8):
        changed, moved = augment(np.random.default_rng(seed), rgb, depth, distorted=0.0)
        mirrored += moved[0, 0] > moved[0, -1]
        assert np.corrcoef(changed.mean(2).ravel(), moved.ravel())[0, 1] > 0.8
    assert 0 < mirrored < 8


def test_detail_of_a_photograph_changes_no_tone():
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 255, (80, 90, 3), np.uint8)
    flat = np.full((64, 96, 3), 120, np.uint8)
    detailed = add_detail(rng, flat, photograph)
    assert detailed.shape == flat.shape
    assert detailed.std() > 3
    assert cv2.GaussianBlur(detailed, (0, 0), 12).std() < 3
    assert detailed.mean() == pytest.approx(120, abs=3)


def test_a_few_steps_lower_the_loss_on_the_scenes(work):
    dataset = train_depth.SceneDataset(work, 0, TrainConfig(distorted=0))
    image = train_depth.normalise(torch.from_numpy(dataset.rgb))
    depth = torch.from_numpy(dataset.inverse_depth.astype(np.float32))
    torch.manual_seed(0)
    model = SmallDepth(NARROW)
    with torch.no_grad():
        before = depth_loss(model.train()(image), depth)
    model = train(work, None, TrainConfig(steps=30, batch=8, workers=0, warmup=5, distorted=0), model)
    with torch.no_grad():
        after = depth_loss(model.train()(image), depth)
    assert after < 0.9 * before


def test_steps_give_the_same_weights_every_time(work, tmp_path):
    out = tmp_path / "depth.safetensors"
    config = TrainConfig(steps=2, batch=4, workers=0)
    first, again = (train(work, out, config, _seeded(NARROW)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    saved = load_small_depth(str(out)).state_dict()
    assert all(torch.equal(first[name], saved[name]) for name in first)


def test_a_killed_run_goes_on_to_the_same_weights(work, tmp_path, monkeypatch):
    out, config = tmp_path / "depth.safetensors", TrainConfig(steps=5, batch=4, workers=0, warmup=2)
    whole = train(work, None, config, _seeded(NARROW)).state_dict()
    saves = []

    def killed_at_the_third_save(model, path):
        save_small_depth(model, path)
        saves.append(path)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_depth, "SAVE_SECONDS", -1)
    monkeypatch.setattr(train_depth, "save_small_depth", killed_at_the_third_save)
    with pytest.raises(KeyboardInterrupt):
        train(work, out, config, _seeded(NARROW))
    assert (tmp_path / "depth.safetensors.state.pt").exists()
    with pytest.raises(DgiqaError, match=r"belongs to another run: steps was 5, now 6; use the same"):
        train(work, out, replace(config, steps=6), _seeded(NARROW))
    resumed = train(work, out, config, SmallDepth(NARROW)).state_dict()
    assert len(saves) == 6, "it began anew"  # the last one when it is done
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "depth.safetensors.state.pt").exists()
    (tmp_path / "depth.safetensors.state.pt").write_bytes(b"half")
    with pytest.raises(DgiqaError, match=r"damaged .*remove it"):
        train(work, out, config, SmallDepth(NARROW))


def test_a_loss_that_is_no_number_keeps_the_last_weights(work, tmp_path, monkeypatch):
    out = tmp_path / "depth.safetensors"
    out.write_bytes(b"good weights")
    monkeypatch.setattr(train_depth, "depth_loss", lambda predicted, depth: predicted.mean() * float("nan"))
    with pytest.raises(DgiqaError, match=r"loss of step 0 is not finite.*lower --learning-rate"):
        train(work, out, TrainConfig(steps=2, batch=4, workers=0), SmallDepth(NARROW))
    assert out.read_bytes() == b"good weights"


def test_too_few_scenes_for_a_batch_are_refused(work):
    with pytest.raises(DgiqaError, match=r"holds \d+ scenes, a batch takes 999; render more"):
        train(work, None, TrainConfig(steps=1, batch=999))


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    out = ["--out", str(tmp_path / "new" / "depth.safetensors"), "--scenes", "0"]
    assert train_depth.main(["--textures", str(tmp_path), *out]) == 1
    assert "ValueError: " in capsys.readouterr().err


def test_scenes_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "paper.png"), np.full((300, 300, 3), 200, np.uint8))
    out = tmp_path / "scenes" / "48x64-000007.npz"
    out.parent.mkdir()
    job = (out, str(tmp_path), 7, 48, 64)
    monkeypatch.setattr(train_depth, "CHUNK", 2)
    with monkeypatch.context() as broken:
        broken.setattr(np, "savez", lambda file, **arrays: file.write(b"half a file") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_depth._render_chunk(job)
    assert not list(out.parent.iterdir())
    train_depth._render_chunk(job)
    (written,) = out.parent.iterdir()
    dataset = train_depth.SceneDataset(written.parent, 0, TrainConfig())
    rgb, inverse_depth = scenes.render(8, scenes.load_textures(tmp_path), 48, 64)
    np.testing.assert_array_equal(dataset.rgb[1], rgb)
    np.testing.assert_allclose(dataset.inverse_depth[1], inverse_depth, rtol=1e-3, atol=1e-7)


def test_training_without_scenes_says_so(tmp_path):
    with pytest.raises(ValueError, match="render_scenes"):
        train(tmp_path, None, TrainConfig(steps=1))


def test_the_stereo_check_measures_the_guess_it_is_given(tmp_path):
    def lower_is_nearer(rgb: np.ndarray) -> np.ndarray:
        return np.tile(np.arange(rgb.shape[0], dtype=np.float32)[:, None], (1, rgb.shape[1]))

    rows = np.tile(np.arange(1, 61, dtype=np.uint8)[:, None], (1, 80))
    Image.fromarray(np.repeat(rows[..., None], 3, 2)).save(tmp_path / "floor_left.png")
    Image.fromarray(np.where(rows < 20, 0, rows)).save(tmp_path / "floor_gt.png")  # 0: unknown
    found = stereo_check(lower_is_nearer, tmp_path)
    ours, trivial = found["motorcycle"]
    assert ours == pytest.approx(trivial)
    assert 0.5 < trivial < 0.8
    assert found["floor"] == pytest.approx((1, 1))
    upside_down = stereo_check(lambda rgb: -lower_is_nearer(rgb))
    assert upside_down["motorcycle"][0] == pytest.approx(-trivial)


def _seeded(config: SmallDepthConfig) -> SmallDepth:
    torch.manual_seed(5)
    return SmallDepth(config)
