"""Photographs -> shards -> samples: reproducible, resumable, labelled in order, with the runtime's depth images."""

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from dgiqa.errors import DgiqaError
from dgiqa.nn.depth import SMALL_PREPROCESS, SmallDepth, save_small_depth
from dgiqa.preprocess import depth_input, stretched
from recipes.small import synthesis
from recipes.small.distortions import LEVELS, TYPES
from recipes.small.synthesis import (
    HEIGHT,
    PRISTINE,
    WIDTH,
    SyntheticPictures,
    add_depth,
    looks_pristine,
    make_reference,
    make_shard,
)
from recipes.small.train_small import split

KINDS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards of two reference pictures, cut from photographs that serve this test alone."""
    root = tmp_path_factory.mktemp("synthesis")
    pictures = root / "pictures"
    pictures.mkdir()
    for name in ("astronaut", "coffee"):
        picture = cv2.resize(getattr(skimage.data, name)(), (800, 600), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(pictures / f"{name}.jpg"), picture[..., ::-1])
    torch.manual_seed(0)
    save_small_depth(SmallDepth().eval(), str(root / "depth.safetensors"))
    for seed in (0, 1):
        make_shard(seed, pictures=pictures, out=root, kinds_per_reference=KINDS)
        add_depth(root / f"{seed:06d}.npz", weights=root / "depth.safetensors")
    return root


def test_samples_are_pictures_with_depth_and_ordered_labels(folder):
    pictures = SyntheticPictures(folder)
    assert len(pictures) == 2 * (1 + KINDS * LEVELS)
    for index in range(len(pictures)):
        sample = pictures[index]
        assert sample.rgb.shape == (HEIGHT, WIDTH, 3)
        assert sample.depth.shape == (HEIGHT, WIDTH)
        assert sample.rgb.dtype == sample.depth.dtype == np.uint8
    labels = pictures.score[pictures.kind != PRISTINE].reshape(-1, LEVELS)
    assert (np.diff(labels) < 0).all()
    assert (pictures.score[pictures.kind == PRISTINE] == 1).all()


def test_groups_are_the_levels_of_one_distortion_of_one_picture(folder):
    pictures = SyntheticPictures(folder)
    distorted = pictures.kind != PRISTINE
    for group in np.unique(pictures.groups[distorted]):
        members = np.flatnonzero(pictures.groups == group)
        assert pictures.level[members].tolist() == [1, 2, 3, 4, 5]
        assert len(set(pictures.kind[members])) == len(set(pictures.picture[members])) == 1


def test_depth_images_are_what_the_runtime_computes(folder):
    from dgiqa.nn.depth import load_small_depth

    network = load_small_depth(str(folder / "depth.safetensors")).eval()
    sample = SyntheticPictures(folder)[3]
    with torch.inference_mode():
        depth = network(torch.from_numpy(depth_input(sample.rgb, SMALL_PREPROCESS))).numpy()
    np.testing.assert_array_equal(sample.depth, stretched(depth, HEIGHT, WIDTH))


def test_a_picture_without_colour_is_no_pristine_one():
    grey = cv2.cvtColor(skimage.data.coffee(), cv2.COLOR_RGB2GRAY)
    assert not looks_pristine(np.repeat(grey[..., None], 3, axis=2))
    assert looks_pristine(skimage.data.coffee())


def test_an_out_of_focus_background_is_no_pristine_picture(tmp_path):
    """Half of this photograph is smooth: crops of it come from the other half, or hold enough of it."""
    sharp = cv2.resize(skimage.data.coffee(), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    assert looks_pristine(sharp)
    assert not looks_pristine(cv2.GaussianBlur(sharp, None, 6))
    assert not looks_pristine(np.full_like(sharp, 128))

    half_smooth = np.hstack([cv2.GaussianBlur(skimage.data.coffee(), None, 12), skimage.data.astronaut()[:400]])
    cv2.imwrite(str(tmp_path / "photograph.png"), cv2.resize(half_smooth, None, fx=2, fy=2)[..., ::-1])
    photographs = [seed for seed in range(30) if make_reference(seed, tmp_path).inverse_depth is None]
    assert len(photographs) > 15
    assert all(looks_pristine(make_reference(seed, tmp_path).rgb) for seed in photographs)


def test_a_finished_shard_is_kept_and_a_lost_one_made_again_alike(folder):
    shard = folder / "000000.npz"
    before, written = dict(np.load(shard)), shard.stat().st_mtime_ns
    make_shard(0, pictures=folder / "pictures", out=folder, kinds_per_reference=KINDS)
    assert shard.stat().st_mtime_ns == written
    shard.unlink()
    make_shard(0, pictures=folder / "pictures", out=folder, kinds_per_reference=KINDS)
    for name, array in np.load(shard).items():
        np.testing.assert_array_equal(array, before[name])
    assert not [path for path in folder.iterdir() if path.suffix in {".tmp", ".partial"}]


def test_reference_pictures_are_of_both_kinds_and_differ(folder):
    references = [make_reference(seed, folder / "pictures") for seed in range(8)]
    assert any(r.inverse_depth is None for r in references)
    assert any(r.inverse_depth is not None for r in references)
    assert len({r.rgb.tobytes() for r in references}) == len(references)


def test_no_reference_picture_is_both_learnt_and_validated(folder):
    pictures = SyntheticPictures(folder)
    pictures.picture = np.arange(len(pictures)) // 2  # as if every two samples were a picture of their own
    training, validation = split(pictures)
    assert len(training)
    assert len(validation)
    assert not set(pictures.picture[training.indices]) & set(pictures.picture[validation.indices])


def test_missing_shards_and_missing_depth_say_what_to_run(folder, tmp_path):
    with pytest.raises(DgiqaError, match=r"no \.npz shards.*recipes\.small\.synthesis"):
        SyntheticPictures(tmp_path)
    (tmp_path / "000000.npz").write_bytes((folder / "000000.npz").read_bytes())
    with pytest.raises(DgiqaError, match="--depth"):
        SyntheticPictures(tmp_path)


def test_every_type_gets_its_turn():
    chosen = {kind for seed in range(60) for kind in np.random.default_rng([seed, 1]).permutation(len(TYPES))[:8]}
    assert chosen == set(range(len(TYPES)))


def test_the_command_finds_what_is_missing_before_it_works_for_hours(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(synthesis, "_run", lambda task, items, processes: ran.append(list(items)))
    ran, out = [], ["--out", str(tmp_path / "out")]
    depth = ["--depth", str(folder / "depth.safetensors")]
    (tmp_path / "empty").mkdir()
    for pictures in ("empty", "nowhere"):
        assert synthesis.main(["--pictures", str(tmp_path / pictures), *out]) == 1
        assert f"no .jpg or .png in {tmp_path / pictures}; gather some" in capsys.readouterr().err
    assert synthesis.main([*depth, *out]) == 1
    assert "make them first, with --pictures" in capsys.readouterr().err
    pictures = ["--pictures", str(folder / "pictures"), "--references", "3", "--first-seed", "5"]
    assert synthesis.main([*pictures, "--depth", str(tmp_path / "no.safetensors"), *out]) == 1
    assert "no.safetensors" in capsys.readouterr().err
    assert not ran
    assert synthesis.main([*pictures, *out]) == 0
    assert ran == [[5, 6, 7]]


def test_a_photograph_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"no picture")
    with pytest.raises(DgiqaError, match=r"holiday\.jpg: "):
        make_reference(1, tmp_path)
