"""DGIQA-FR: the difference of shared features, its training on pairs, the same score from a bundle; and GlintIQA's."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - the skip comes before what needs torch

from made_pictures import pattern
from PIL import Image
from torch import nn

from dgiqa.errors import DgiqaError, WeightsError
from dgiqa.nn import datasets
from dgiqa.nn import train as training
from dgiqa.nn.checkpoints import load_weights
from dgiqa.nn.datasets import DepthNetwork, Sample, Samples, load_csv, plain
from dgiqa.nn.fitting import saved_config
from dgiqa.nn.full_reference import DGIQAFR, DGIQAFRConfig, reference_files, with_reference
from dgiqa.nn.glintiqa import TRAINING, GlintIQA, GlintIQAConfig
from dgiqa.nn.network import DGIQA, DGIQAConfig
from dgiqa.nn.predict import predictor
from dgiqa.nn.train import PLAIN_TILING, CropBatches, TrainConfig, learning_rate, losses, network_inputs, train
from dgiqa.nn.weights import save_weights
from dgiqa.spec import Preprocess

SIZES = DGIQAConfig(
    backbone="resnet10t",
    backbone_options={"channels": (8, 8, 8, 8), "stem_type": "deep", "stem_width": 8},
    tcb_channels=(4, 4, 8, 8),
    reduction=2,
    heads=2,
    dilated_channels=6,
    image_size=64,
)


def made(difference: str = "signed") -> DGIQAFR:
    torch.manual_seed(0)
    model = with_reference(DGIQA(SIZES), difference)
    nn.init.normal_(model.fc_reference.weight)
    return model.eval()


def tiles(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 64, 64, generator=generator) for _ in range(2)]


def test_a_signed_difference_is_of_means_and_an_absolute_one_of_maps() -> None:
    signed, absolute = made(), made("absolute")
    picture, reference = tiles(1), tiles(2)
    with torch.no_grad():
        means = [signed.features(*pair) for pair in (picture, reference)]
        maps = [absolute.features(*pair) for pair in (picture, reference)]
        assert means[0].shape == (2, 6)
        assert torch.allclose(maps[0].unflatten(1, (6, -1)).mean(2), means[0], atol=1e-5)
        w, b = signed.fc_reference.weight[0], signed.fc_reference.bias
        assert torch.allclose(signed.compared(*means), torch.sigmoid((means[1] - means[0]) @ w + b))
        apart = (maps[1] - maps[0]).abs().unflatten(1, (6, -1)).mean(2)
        assert torch.allclose(absolute.compared(*maps), torch.sigmoid(apart @ w + b), atol=1e-6)
        assert torch.allclose(absolute.score(maps[0]), signed.score(means[0]), atol=1e-6)
        with pytest.raises(ValueError, match="signed or absolute"):
            DGIQAFR(DGIQAFRConfig(difference="relative"))


@pytest.mark.parametrize("difference", ["signed", "absolute"])
def test_both_pictures_share_the_network_and_the_score_without_a_reference_stays(difference: str) -> None:
    model, picture, reference = made(difference), tiles(1), tiles(2)
    with torch.no_grad():
        both = model(*picture, *reference)
        features = [model.features(*pair) for pair in (picture, reference)]
        assert torch.equal(both[:, 0], model.compared(*features))
        assert torch.equal(both[:, 1], model(*picture))
        same = model(*picture, *picture)[:, 0]
        assert torch.allclose(same, torch.sigmoid(torch.tensor(4.0)).expand(2))
        head = model.head(features[0].shape[1])
        got = head.score(*(f.numpy() for f in features))
        assert np.allclose(got, both[:, 0].numpy(), atol=1e-6), "the runtime's layer is this one"


def test_weights_bring_the_difference_and_start_from_a_networks(tmp_path: Path) -> None:
    model = made("absolute")
    save_weights(model, tmp_path / "fr.safetensors")
    loaded = load_weights(tmp_path / "fr.safetensors")
    assert isinstance(loaded, DGIQAFR)
    assert loaded.config == model.config
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    torch.save(model.state_dict(), tmp_path / "fr.pth")
    with pytest.raises(WeightsError, match="does not say its sizes"):
        load_weights(tmp_path / "fr.pth")
    start = DGIQA(SIZES)
    grown = with_reference(start).state_dict()
    assert all(torch.equal(value, grown[name]) for name, value in start.state_dict().items())


def test_before_it_learns_a_picture_is_as_far_from_its_reference_as_their_logits() -> None:
    torch.manual_seed(0)
    start, picture, reference = DGIQA(SIZES).eval(), tiles(1), tiles(2)
    with torch.no_grad():
        logits = [torch.logit(start(*pair)) for pair in (picture, reference)]
        found = with_reference(start).eval()(*picture, *reference)[:, 0]
        assert torch.allclose(torch.logit(found), 4 - 2 * (logits[1] - logits[0]), atol=1e-4)
        absolute = with_reference(start, "absolute").eval()
        assert with_reference(absolute) is absolute, "one that has learned goes on"
        assert (absolute(*picture, *reference)[:, 0] < absolute(*picture, *picture)[:, 0]).all()
        with pytest.raises(ValueError, match="take signed"):
            with_reference(DGIQA(dataclasses.replace(SIZES, statistics=True)), "absolute")


def test_what_other_versions_could_do_is_passed_over_where_it_is_off() -> None:
    saved = dataclasses.asdict(SIZES)
    assert saved_config({"config": json.dumps(saved | {"gone": 0})}, DGIQAConfig) == SIZES
    assert saved_config({"config": json.dumps(saved | {"gone": 3})}, DGIQAConfig) is None
    assert saved_config({"config": "[1]"}, DGIQAConfig) is None


class Pairs:
    """Pictures that are darker than their references by as much as their scores say."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        reference = pattern(80, 70 + index)
        picture = (reference * (0.3 + 0.1 * index)).astype(np.uint8)
        depth = np.stack([picture[..., 0], reference[..., 0]], 2)
        return Sample(np.concatenate([picture, reference], 2), depth, index / 8)


def test_a_batch_of_pairs_becomes_four_inputs_with_one_window() -> None:
    config = TrainConfig(batch=4, crop=64, flip=1.0)
    rgb, depth, score = CropBatches(Pairs(), config)[0]
    assert (rgb.shape, depth.shape) == ((4, 64, 64, 6), (4, 64, 64, 2))
    fed = network_inputs(made(), rgb, depth)
    assert [f.shape for f in fed] == [(4, 3, 64, 64)] * 4
    assert torch.equal(depth[..., 0], rgb[..., 0])
    assert torch.equal(depth[..., 1], rgb[..., 3]), "both are flipped and cut alike"
    model = made().train()
    both = losses(model, (rgb, depth, score), TrainConfig(consistency=0.0))
    torch.manual_seed(0)
    assert both[0] == both[1]


def test_training_on_pairs_lowers_the_loss(tmp_path: Path) -> None:
    config = TrainConfig(epochs=12, batch=8, crop=64, lr=3e-3, consistency=0.0, device="cpu", checkpoint_steps=99)
    weights = train(made(), Pairs(), config, tmp_path)
    rows = [float(line.split(",")[3]) for line in (tmp_path / "losses.csv").read_text().splitlines()[1:]]
    assert np.mean(rows[-3:]) < 0.8 * np.mean(rows[:3])
    assert isinstance(load_weights(weights), DGIQAFR)


def test_references_are_found_by_name_in_the_usual_folders(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "refimgs").mkdir()
    for name in ("images/a1.png", "images/b1.png", "refimgs/A.BMP", "refimgs/b.png"):
        Image.fromarray(pattern(8, 8)).save(tmp_path / name)
    table = tmp_path / "labels.csv"
    table.write_text("image,score,reference\nimages/a1.png,1,a.bmp\nimages/b1.png,2,B\n")
    found = reference_files(load_csv(table), tmp_path)
    assert {name: path.name for name, path in found.items()} == {"a.bmp": "A.BMP", "B": "b.png"}
    (tmp_path / "refimgs" / "b.png").unlink()
    with pytest.raises(DgiqaError, match=r"lacks 1 of 2 references .*: B; put them"):
        reference_files(load_csv(table), tmp_path)


@pytest.mark.parametrize("start", ["DGIQA", "GlintIQA"])
def test_the_command_trains_and_validates_beside_references_and_without_depth(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("1", "2", "3", "4", "a", "b"):
        Image.fromarray(pattern(230, 240)).save(tmp_path / f"{name}.png")
    lines = [f"{n}.png,{n},{'ab'[n % 2]},{'train' if n < 3 else 'validation'}" for n in (1, 2, 3, 4)]
    lines.append("1.png,1,a,test")
    (tmp_path / "labels.csv").write_text("image,score,reference,split\n" + "\n".join(lines) + "\n")
    network = DepthNetwork("green", lambda rgb: np.ascontiguousarray(rgb[..., 1]), Preprocess(short_side=224))
    monkeypatch.setattr(datasets, "bundle_depth", lambda name: network)
    torch.manual_seed(0)
    model = DGIQA(SIZES) if start == "DGIQA" else GlintIQA(dataclasses.replace(GLINT, image_size=224))
    save_weights(model, tmp_path / "start.safetensors")
    kind = ["--full-reference", "--crop", "64"] if start == "DGIQA" else ["--network", "glintiqa"]
    data = ["--dataset", "csv", "--root", str(tmp_path), "--split", "official", "--validate"]
    rest = ["--weights", str(tmp_path / "start.safetensors"), "--epochs", "1", "--batch", "2", "--device", "cpu"]
    command = [*kind, *data, *rest, "--depth-cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run")]
    if start == "DGIQA":
        assert training.main([*command, "--depth-only"]) == 0
        assert len(list((tmp_path / "cache").iterdir())) == 1, "all pictures are one"
    assert training.main(command) == 0
    assert isinstance(load_weights(capsys.readouterr().out.split()[-1]), DGIQAFR if start == "DGIQA" else GlintIQA)
    assert (tmp_path / "run" / "validation.csv").read_text().startswith("step,srocc")


GLINT = GlintIQAConfig(width=12, heads=3, reads=(1, 2, 3, 4), frozen_blocks=1, stem=4, stages=(1, 1, 1), image_size=64)


def test_glintiqa_learns_raw_labels_by_l1_with_its_frozen_layers_still(tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(pattern(70, 66 + number)).save(tmp_path / f"{number}.png")
    table = tmp_path / "labels.csv"
    table.write_text("image,score\n" + "".join(f"{n}.png,{10 + 20 * n}\n" for n in range(4)))
    dataset = load_csv(table, worst=100, best=0)
    ends = dataset.worst, dataset.best
    small = dataclasses.replace(GlintIQA.preprocess, tile=64)
    samples = Samples(dataset.records, functools.partial(plain, ends=ends, p=small))
    assert [samples[i].score for i in range(4)] == pytest.approx([10, 30, 50, 70])
    assert samples[2].rgb.shape == (70, 68, 3)
    torch.manual_seed(0)
    model = GlintIQA(GLINT).freeze()
    model.preprocess = small  # type: ignore[misc]
    before = {name: p.clone() for name, p in model.named_parameters()}
    (fed,) = network_inputs(model, torch.full((1, 2, 2, 3), 255, dtype=torch.uint8), torch.zeros(1, 2, 2))
    assert torch.equal(fed, torch.ones(1, 3, 2, 2))
    config = TrainConfig(**TRAINING | {"epochs": 2, "batch": 4, "crop": 64, "device": "cpu", "lr": 1e-3})
    train(model, samples, config, tmp_path / "run")
    row = (tmp_path / "run" / "losses.csv").read_text().splitlines()[1].split(",")
    assert float(row[3]) == pytest.approx(40, abs=5), "mean |label - score|, labels being 10 to 70"
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    still = ("vgfe.backbone.patch_embed", "vgfe.backbone.blocks.0.", "clfe.backbone.conv1", "clfe.backbone.layer1")
    assert moved
    assert not [name for name in moved if name.startswith(still)]
    predicted = predictor(samples.read, small, PLAIN_TILING)(model, dataset.records)
    assert predicted.shape == (4,)


def test_glintiqas_learning_rate_swings_every_sixty_steps() -> None:
    config = TrainConfig(**TRAINING)
    rates = [learning_rate(config, step, 10_000) for step in (0, 15, 30, 45, 60)]
    assert rates == pytest.approx([1e-5, 5e-6, 0, 5e-6, 1e-5], abs=1e-12)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=0)
    theirs = []
    for _ in range(100):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert [learning_rate(config, step, 10_000) for step in range(100)] == pytest.approx(theirs, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("difference", ["signed", "absolute"])
def test_a_bundle_compares_as_pytorch_does(difference: str, tmp_path: Path) -> None:
    from dgiqa.nn.bundling import import_weights
    from dgiqa.nn.checkpoints import load_weights as load
    from dgiqa.nn.depth import SmallDepth, save_small_depth
    from dgiqa.nn.reference import depth_image, depth_input, network_tiles
    from dgiqa.scorer import Scorer

    skimage = pytest.importorskip("skimage.data")
    model, depth = made(difference), SmallDepth().eval()
    model.config.__dict__["image_size"] = 224  # tiles as the small depth network's bundle has them
    save_weights(model, tmp_path / "fr.safetensors")
    save_small_depth(depth, str(tmp_path / "d.safetensors"))
    photo = np.ascontiguousarray(skimage.coffee()[::2, ::2])
    worse = (photo // 3).astype(np.uint8)
    (tmp_path / "photos").mkdir()  # the export is compared on one small picture; others try it on many
    Image.fromarray(photo).save(tmp_path / "photos" / "coffee.png")
    weights = tmp_path / "fr.safetensors", tmp_path / "d.safetensors"
    bundle = import_weights(*weights, tmp_path / "b", name="b", photos=tmp_path / "photos")
    with Scorer(bundle) as scorer:
        found = scorer.compare(worse, photo)
    fed = []
    p = bundle.preprocess
    with torch.no_grad():
        for rgb in (worse, photo):
            near = depth_image(load(tmp_path / "d.safetensors")(depth_input(rgb, p)), *rgb.shape[:2], p)
            fed += network_tiles(rgb, near, p, "grid")
        wanted = model(*fed)[:, 0]
    assert found.tile_full_reference is not None
    assert np.abs(found.tile_full_reference - wanted.numpy()).max() < 1e-4
