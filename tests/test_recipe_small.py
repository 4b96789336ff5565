"""The default model's recipe: encoders, chains of distortions, their labels, and a learning run that can be stopped."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("av")

from dgiqa.nn.backbones import import_timm  # noqa: E402
from dgiqa.nn.depth import SMALL_PREPROCESS  # noqa: E402
from dgiqa.nn.network import DGIQA, SMALL, softened  # noqa: E402
from dgiqa.nn.weights import save_weights  # noqa: E402
from dgiqa.preprocess import working_image  # noqa: E402
from dgiqa.spec import TILE  # noqa: E402
from recipes.small import chains, encoding, learn, scale, working  # noqa: E402
from recipes.small.depthwise import quicken  # noqa: E402
from recipes.small.reasons import REASONS  # noqa: E402


def picture(seed: int = 0, height: int = 200, width: int = 240) -> np.ndarray:
    """Smooth colours with edges and texture: uint8 [height,width,3]."""
    rng = np.random.default_rng(seed)
    rough = cv2.resize(rng.integers(0, 255, (6, 7, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.rectangle(rough, (40, 50), (150, 120), (250, 240, 30), -1)
    return np.clip(rough + rng.normal(0, 6, rough.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("same", [False, True])
def test_quick_gradients_are_torchs_own(same):
    import_timm()
    from timm.layers import Conv2dSame

    kinds = [(3, 1), (3, 2), (5, 1), (5, 2)]
    for kernel, stride in kinds:
        plain = (Conv2dSame if same else torch.nn.Conv2d)(
            6, 6, kernel, stride=stride, padding=0 if same else kernel // 2, groups=6, bias=False
        )
        found = []
        for quick in (False, True):
            if quick:
                quicken(plain)
            x = torch.arange(6 * 17 * 18.0).reshape(1, 6, 17, 18).sin().requires_grad_()
            plain.zero_grad()
            (plain(x) ** 2).sum().backward()
            found.append((x.grad.clone(), plain.weight.grad.clone()))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("codec", encoding.SERIES)
def test_every_codec_keeps_the_size_and_its_series_gets_worse(codec):
    rgb = picture(1, 97, 129)  # 4:2:0 wants even sides
    errors = [np.mean((encoding.save(rgb, codec, q).astype(float) - rgb) ** 2) for q in encoding.SERIES[codec]]
    assert encoding.save(rgb, codec, encoding.SERIES[codec][0]).shape == rgb.shape
    assert errors == sorted(errors)
    assert errors[0] < 250


def test_ordinary_encoders_change_little():
    rgb = picture(2)
    rng = np.random.default_rng(0)
    assert all(cv2.PSNR(encoding.ordinary(rgb, rng), rgb) > 24 for _ in range(30))


def flat_scale() -> scale.Scale:
    """Says how far MDSI and HaarPSI are from those of equal pictures, in the order in which they are."""
    curves = np.stack([np.linspace(-0.6, 0, 257), np.linspace(0.2, 1, 257)])
    return scale.Scale(curves, np.linspace(0.1, 1, 33), {kind: [0.8, 0.7, 0.6, 0.5, 0.4] for kind in scale.HUMAN})


@pytest.mark.parametrize("kind", [*chains.KINDS, "steps"])
def test_a_group_never_gets_better_and_names_its_reasons(kind):
    for seed in range(3):
        rgb = picture(seed)
        made = chains.group(kind, rgb, np.random.default_rng(seed))
        shares = chains.judge(made, chains.compared(rgb), flat_scale())
        assert len(made) == len(shares) == chains.SIZE
        assert all(one.rgb.shape == rgb.shape and one.rgb.dtype == np.uint8 for one in made)
        assert all(0 <= later <= earlier <= 1 for earlier, later in itertools.pairwise(shares))
        assert all(set(one.reasons) <= {*REASONS, "codec"} for one in made)


def test_black_and_white_is_no_fault():
    rgb = picture(4)
    made = chains.group("grey", rgb, np.random.default_rng(1))
    assert made[1].rgb.std(axis=2).max() < 30
    assert chains.judge(made[:2], chains.compared(rgb), flat_scale()) == [1.0, 1.0]


def test_a_blank_wall_is_worth_nothing_however_it_is_noisy():
    made = chains.group("nothing", picture(), np.random.default_rng(2))
    assert chains.judge(made, chains.compared(picture()), flat_scale()) == [0, 0, 0, 0]


def test_the_scale_rises_with_the_metrics_and_labels_stay_below_the_photographs():
    rng = np.random.default_rng(0)
    kinds = [(kind, level) for kind in scale.HUMAN for level in range(1, 6)] + [("none", 0)] * 20
    human = np.array([scale.HUMAN[k][level - 1] if level else 1.0 for k, level in kinds])
    values = np.stack([human - 1 + rng.normal(0, 0.02, len(human)), human * 0.8 + 0.2], 1)
    fitted = scale.fit(values, kinds)
    shares = fitted(np.stack([np.linspace(-1, 0, 50), np.linspace(0.2, 1, 50)], 1))
    assert (np.diff(shares) >= 0).all()
    assert shares[-1] > 0.98
    assert np.corrcoef(fitted(values), human)[0, 1] > 0.95
    assert scale.FLOOR < scale.label(0.8, 0.3) < scale.label(0.8, 0.9) < 0.8


def folder(path: Path, count: int, labels: dict[str, np.ndarray]) -> Path:
    rgb, depth = working.create(path, count)
    for i in range(count):
        rgb[i], depth[i] = working.square(picture(i)), 10 * i
    working.save_labels(path, labels)
    return path


def test_a_tile_that_is_learned_from_is_as_sharp_as_one_that_is_scored(tmp_path):
    rgb = picture(3, 512, 512)  # as large as the photographs with opinions
    stored, _depth = working.create(tmp_path, 1)
    stored[0] = working.square(rgb)
    working.save_labels(tmp_path, {"mos": np.zeros(1, np.float32)})
    learned = learn.Pictures(tmp_path).crop(0, learn.Place(0, 0, learn.SEEN))[0]
    scored = working_image(rgb, SMALL_PREPROCESS)[:TILE, :TILE]
    sharp = [cv2.Laplacian(tile, cv2.CV_32F).std() for tile in (learned, scored)]
    assert sharp[0] / sharp[1] == pytest.approx(1, abs=0.05)  # 0.71 when 384 pixels were stored


def test_a_photograph_answers_by_the_mean_score_of_its_crops(tmp_path):
    opinions = learn.Pictures(folder(tmp_path, 8, {"mos": np.linspace(0.2, 0.9, 8, dtype=np.float32)}))
    settings = learn.Settings(judged=4, views=2, pairs=0, same=0, invariance=0)
    batches = learn.Batches(opinions, None, settings)
    batches.training = np.arange(8)
    label = batches(0)["label"]
    assert label[0] == label[1] != label[2] == label[3]
    score = torch.from_numpy(label) + torch.tensor([0.1, -0.1, -0.2, 0.2])
    batch = {"label": label, "of": np.zeros(0, np.int64), "reasons": np.zeros((0, len(REASONS)), np.float32)}
    assert learn.losses(score, None, batch, settings)["opinion"] < 1e-12
    single = dataclasses.replace(settings, views=1)
    assert learn.losses(score, None, batch, single)["opinion"] == pytest.approx(0.025)


def test_crops_are_smoothed_as_the_network_smooths():
    rgb = picture(5, 64, 64)
    wanted = softened(torch.from_numpy(rgb).permute(2, 0, 1)[None].float(), 0.1)[0].permute(1, 2, 0)
    found = learn.smoothed(rgb, 0.1)
    assert np.abs(found[1:-1, 1:-1] - wanted.numpy()[1:-1, 1:-1]).max() <= 0.51


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(learn, "VALIDATION", 2)
    monkeypatch.setattr(learn, "CHAIN_VALIDATION", 3)
    opinions = learn.Pictures(folder(tmp_path / "a", 8, {"mos": np.linspace(0.2, 0.9, 8, dtype=np.float32)}))
    reasons = np.tile(np.eye(4, len(REASONS), dtype=np.float32), (3, 1))
    labels = {"label": np.tile([0.8, 0.6, 0.4, 0.2], 3).astype(np.float32), "reasons": reasons}
    sources = {"source": np.repeat(np.arange(3), 4), "kind": np.array(["single"] * 12)}
    pictures = learn.Pictures(folder(tmp_path / "b", 12, labels | sources))
    settings = learn.Settings(steps=3, judged=3, pairs=2, toned=1, same=3, warmup=1)
    ends = []
    for stops in ((3,), (2, 3)):
        for stop in stops:
            torch.manual_seed(0)
            network = DGIQA(dataclasses.replace(SMALL, dropout=0.0, reasons=len(REASONS)))
            batches = learn.Batches(opinions, pictures, settings)
            monkeypatch.setattr(learn, "enough", lambda step, stop=stop: step >= stop)
            learn.train(network, batches, settings, tmp_path / f"run{len(stops)}", float("inf"))
        ends.append(learn.load_dgiqa(tmp_path / f"run{len(stops)}" / "weights.safetensors").state_dict())
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-4, atol=1e-5)


def test_a_pupil_is_held_where_its_teacher_is_and_the_worse_of_a_pair_stays_below():
    batch = {
        "label": np.array([0.9, 0.5, 0.8, 0.799], np.float32),
        "reasons": np.ones((2, 3), np.float32),
        "of": np.zeros(0, np.int64),
    }
    taught = (torch.tensor([0.6, 0.4, 0.1, 0.1]), torch.zeros(4, 3))
    settings = learn.Settings(keep=2.0, told=3.0, order=1.0)

    def parts(score: list[float], logit: float = 0.0, teacher=taught) -> dict[str, float]:
        found = learn.losses(torch.tensor(score), torch.full((4, 3), logit), batch, settings, teacher)
        return {name: float(value) for name, value in found.items()}

    there = parts([0.6, 0.4, 0.7, 0.6])
    assert there["keep"] == there["told"] == there["order"] == 0
    assert "reason" not in there
    assert "reason" in parts([0.6, 0.4, 0.7, 0.6], teacher=None)
    away = parts([0.7, 0.4, 0.6, 0.6], logit=9.0)
    assert away["keep"] == pytest.approx(2 * 0.1**2 / 2, rel=1e-4)
    assert away["told"] == pytest.approx(3 * 0.25, rel=1e-2)
    assert away["order"] == pytest.approx(learn.APART, rel=1e-4)


def test_with_a_teacher_statistics_of_normalisation_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(learn, "VALIDATION", 2)
    opinions = learn.Pictures(folder(tmp_path / "a", 8, {"mos": np.linspace(0.2, 0.9, 8, dtype=np.float32)}))
    settings = learn.Settings(steps=1, judged=3, pairs=0, toned=1, same=0, warmup=1)
    torch.manual_seed(0)
    network = DGIQA(dataclasses.replace(SMALL, reasons=len(REASONS)))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batches = learn.Batches(opinions, None, settings)
    learn.train(network, batches, settings, tmp_path / "run", float("inf"), teacher=copy.deepcopy(network).eval())
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    assert not torch.equal(before["fc.weight"], after["fc.weight"])


def test_folders_of_pictures_stand_one_after_the_other_in_memory_and_on_disk(tmp_path):
    folders = [folder(tmp_path / name, n, {"source": np.arange(n)}) for name, n in (("a", 2), ("b", 3))]
    place = learn.Place(40, 60, 250)
    last = learn.Pictures(folders[1]).crop(2, place)
    for pictures in (learn.Pictures(*folders), learn.Pictures(*folders, in_memory=True)):
        rgb, depth = pictures.crop(4, place)
        assert np.array_equal(rgb, last[0])
        assert np.abs(depth.astype(int) - last[1]).max() <= 1
        assert len(set(pictures.labels["source"])) == 5, "sources of two folders are never one"


@pytest.mark.parametrize("kind", learn.WORSE)
def test_crops_made_worse_on_the_spot_are_worth_what_people_say(kind, monkeypatch):
    monkeypatch.setattr(learn, "WORSE", {kind: 1})
    rgb = picture(3, 224, 224)
    for seed in range(4):
        mild, strong = learn.toned(rgb, rgb[..., 0], 0.8, np.random.default_rng(seed))
        assert mild[2] > strong[2] >= scale.FLOOR
        assert not np.array_equal(mild[0], strong[0])
        assert sum(strong[3]) >= sum(mild[3])


@pytest.mark.parametrize("change", learn.UNSEEN)
def test_changes_that_nobody_minds_are_small(change):
    rgb = cv2.GaussianBlur(picture(3, 224, 224), (0, 0), 2)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) if change == "black and white" else rgb
    for seed in range(4):
        after = learn.UNSEEN[change](rgb, np.random.default_rng(seed))
        assert after.shape == rgb.shape
        assert cv2.PSNR(after[..., 0] if change == "black and white" else after, grey) > 28


def test_a_network_without_reasons_gets_a_new_head_for_them(tmp_path):
    network = DGIQA(SMALL)
    save_weights(network, tmp_path / "w.safetensors")
    started = learn.network_from(tmp_path / "w.safetensors", "")
    assert started.config.reasons == len(REASONS)
    assert torch.equal(started.fc.weight, network.fc.weight)


def test_the_mean_of_two_runs_is_their_mean():
    from recipes.small.average import average

    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, depth_car=False)
    one, other = DGIQA(config), DGIQA(config)
    wanted = (one.fc.weight + other.fc.weight) / 2
    torch.testing.assert_close(average([one, other]).fc.weight, wanted)


def test_a_timid_network_is_made_as_bold_as_people():
    from recipes.small.average import rescaled

    rng = np.random.default_rng(0)
    network = DGIQA(dataclasses.replace(SMALL, depth_car=False))
    weight, bias = network.fc.weight.detach().clone(), network.fc.bias.detach().clone()
    logits = rng.normal(0.4, 0.5, (200, 4))
    wanted = 1 / (1 + np.exp(-(2 * logits - 0.3)))
    rescaled(network, 1 / (1 + np.exp(-logits)), wanted.mean(1))
    torch.testing.assert_close(network.fc.weight, 2 * weight, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(network.fc.bias, 2 * bias - 0.3, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_the_head_for_reasons_learns_them_on_a_network_that_stays(tmp_path):
    from recipes.small import tell

    torch.manual_seed(0)
    network = DGIQA(dataclasses.replace(SMALL, reasons=len(REASONS))).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    Image.fromarray(picture(0, 240, 300)).save(tmp_path / "a.png")
    save_weights(network, tmp_path / "w.safetensors")
    values, wanted, source = tell.gather(tmp_path / "w.safetensors", [tmp_path / "a.png"] * 2, workers=1)
    assert values.shape[0] == 2 * chains.SIZE
    assert wanted.shape == (2 * chains.SIZE, len(REASONS))
    assert set(source) == {0, 1}

    rng = np.random.default_rng(0)
    noisy = [rng.normal(90, 40 if i % 2 else 2, (240, 300, 3)).clip(0, 255).astype(np.uint8) for i in range(40)]
    values = tell.seen(network, np.stack([tell.tile(rgb, i % 4) for i, rgb in enumerate(noisy)]))
    reasons = np.zeros((40, len(REASONS)), np.float32)
    reasons[1::2, REASONS.index("noise")] = 1
    head = tell.fit(values, torch.from_numpy(reasons), epochs=400)
    assert tell.precision(head, values, reasons)["noise"] == 1
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
