"""Moving digits: reproducible from (seed, split, index) alone, and moving as the stated equations say."""

from __future__ import annotations

import gzip
import math
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from motionrnn_ext.data import MotionRanges, VariedMovingMNIST, digits, load_digits, render
from motionrnn_ext.data.moving_mnist import fold

STILL = {"rotation": (0, 0), "scale_rate": (0, 0), "angle": (0, 0), "scale": (1, 1)}


def ink_box(frame: Tensor) -> tuple[int, int, int, int]:
    """First and last column, first and last row with ink."""
    columns, rows = (frame.sum(axis).nonzero() for axis in (0, 1))
    return int(columns[0]), int(columns[-1]), int(rows[0]), int(rows[-1])


# What an item depends on


def test_item_is_float_frames_in_unit_range() -> None:
    item = VariedMovingMNIST("train", n_frames=13, image_size=(48, 80))[0]
    assert item.shape == (13, 1, 48, 80)
    assert item.dtype == torch.float32
    assert item.is_contiguous()
    assert item.min() == 0
    assert 0.9 < item.max() <= 1


def test_items_depend_on_seed_split_and_index_alone() -> None:
    data = VariedMovingMNIST("train", seed=3, length=50)
    items = [data[i] for i in range(6)]
    again = VariedMovingMNIST("train", seed=3, length=9)
    for i in (5, 0, 3, 0):
        torch.rand(7)  # the global generator plays no part
        assert torch.equal(again[i], items[i])
    assert torch.equal(again[-4], items[5])
    distinct = [*items, VariedMovingMNIST("train", seed=4)[0], VariedMovingMNIST("val", seed=3)[0]]
    assert len({item.numpy().tobytes() for item in distinct}) == len(distinct)
    motions = [VariedMovingMNIST(split, seed=3).motion(0) for split in ("train", "val", "test")]
    assert len({motion.angle.numpy().tobytes() for motion in motions}) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    data = VariedMovingMNIST("val", length=8, n_frames=5)
    loaded = torch.cat(list(DataLoader(data, batch_size=3, num_workers=workers)))
    assert torch.equal(loaded, torch.stack([data[i] for i in range(8)]))


def test_survives_pickling() -> None:
    data = VariedMovingMNIST("test", n_frames=4)
    assert torch.equal(pickle.loads(pickle.dumps(data))[2], data[2])


def test_longer_clips_begin_the_same() -> None:
    short, long = (VariedMovingMNIST("train", n_frames=n)[7] for n in (6, 15))
    assert torch.equal(long[:6], short)


def test_iteration_ends() -> None:
    data = VariedMovingMNIST("train", length=3, n_frames=2)
    assert len(data) == 3
    assert sum(1 for _ in data) == 3
    with pytest.raises(IndexError, match=r"0\.\.2; got 3"):
        data[3]


# Motion


def test_fold_is_exact_at_its_turning_points() -> None:
    x = torch.tensor([-2, -1, -0.25, 0, 0.25, 1, 1.75, 2, 3, 17.5, 1e6], dtype=torch.float64)
    assert fold(x).tolist() == [0, 1, 0.25, 0, 0.25, 1, 0.25, 0, 1, 0.5, 0]


@pytest.mark.parametrize(
    "ranges",
    [
        {},
        {"plain": True},
        {"image_size": (40, 70), "speed": (20, 90)},
        {"digit_size": 17, "image_size": (32, 32)},
        {"scale": (0.3, 1.8), "scale_rate": (-0.4, 0.4), "rotation": (-60, 60)},
        {"plain": True, "angle": (45, 45)},
    ],
    ids=lambda ranges: ",".join(ranges) or "default",
)
def test_ink_never_leaves_the_frame(ranges: dict) -> None:
    """Drawn on a larger canvas, the border around the frame stays exactly empty and the inside is the item."""
    data, pad = VariedMovingMNIST("train", length=40, n_frames=40, **ranges), 24
    height, width = data.ranges.image_size
    for i in range(0, 40, 4):
        motion = data.motion(i)
        images = data.images[motion.digit].float() / 255
        moved = motion._replace(centre=motion.centre + pad)
        wide = render(images, data._middle[motion.digit], moved, (height + 2 * pad, width + 2 * pad))
        inside = wide[..., pad : pad + height, pad : pad + width]
        torch.testing.assert_close(inside, data[i], rtol=0, atol=1e-6)  # measured 0
        inside.zero_()
        assert wide.max() == 0


def test_ink_reaches_the_edge_at_a_bounce() -> None:
    """Over many frames an upright digit's ink touches all four edges, and its extreme centres are half a box in."""
    data = VariedMovingMNIST(
        "train", plain=True, n_digits=1, n_frames=4000, speed=(3.1, 3.1), image_size=(40, 44)
    )
    motion, clip = data.motion(1), data[1][:, 0].amax(0)
    assert ink_box(clip) == (0, 43, 0, 39)
    first_x, last_x, first_y, last_y = ink_box(data.images[motion.digit[0]])
    half = torch.tensor([last_x - first_x + 1, last_y - first_y + 1]) / 2
    centre = motion.centre[0]
    # 4000 frames come this near to the walls and never pass them; measured 0.006
    assert (centre.amin(0) - half).tolist() == pytest.approx([0, 0], abs=0.02)
    assert (centre.amax(0) + half).tolist() == pytest.approx([44, 40], abs=0.02)
    assert bool((centre.amin(0) >= half - 1e-9).all())


def test_motion_is_straight_with_specular_bounces() -> None:
    """Against a walk simulated frame by frame; the speed is exact away from the walls."""
    data = VariedMovingMNIST("test", plain=True, n_digits=3, n_frames=60, speed=(2.0, 7.0))
    for i in range(5):
        motion = data.motion(i)
        for digit, centre in zip(motion.digit, motion.centre, strict=True):
            x0, x1, y0, y1 = ink_box(data.images[digit])
            half = [(x1 - x0 + 1) / 2, (y1 - y0 + 1) / 2]
            speeds = centre.diff(dim=0).norm(dim=-1)
            speed = speeds.median()
            assert 2 <= speed <= 7
            assert (speeds <= speed + 1e-9).all()
            for axis in range(2):
                low, high = half[axis], 64 - half[axis]
                step = centre[:, axis].diff()
                usual = step.abs().max()
                position, direction = centre[0, axis].item(), math.copysign(1, step[0])
                bounced_first = step[0].abs() < usual - 1e-9
                if bounced_first:  # where it turned within the first step is not seen from the positions
                    continue
                for t in range(60):
                    assert centre[t, axis].item() == pytest.approx(position, abs=1e-8)
                    position += direction * usual.item()
                    if not low <= position <= high:
                        position = 2 * (low if position < low else high) - position
                        direction = -direction


def test_plain_digits_keep_shape_and_mass() -> None:
    data = VariedMovingMNIST("train", plain=True, n_digits=1)
    for i in range(10):
        motion, clip = data.motion(i), data[i]
        assert torch.equal(motion.angle, torch.zeros(1, 20, dtype=torch.float64))
        assert torch.equal(motion.scale, torch.ones(1, 20, dtype=torch.float64))
        mass = data.images[motion.digit].float().sum() / 255
        # bilinear weights of a shift sum to one; measured 3.4e-7
        torch.testing.assert_close(clip.sum((1, 2, 3)), mass.expand(20), rtol=5e-6, atol=0)


def test_digit_at_whole_pixels_is_the_image_itself() -> None:
    data = VariedMovingMNIST("train", plain=True, n_digits=1, n_frames=1, digit_size=28, image_size=(28, 28))
    motion = data.motion(0)
    at_home = motion._replace(centre=data._middle[motion.digit][:, None])
    image = data.images[motion.digit].float() / 255
    drawn = render(image, data._middle[motion.digit], at_home, (28, 28))
    torch.testing.assert_close(drawn, image[None], rtol=0, atol=1e-5)


def test_plain_and_varied_share_digits_and_headings() -> None:
    plain, varied = VariedMovingMNIST("val", plain=True).motion(4), VariedMovingMNIST("val").motion(4)
    assert torch.equal(plain.digit, varied.digit)
    fixed = VariedMovingMNIST("val", rotation=(0, 0), scale_rate=(0, 0), speed=(0.01, 0.01)).motion(4)
    slow = VariedMovingMNIST("val", plain=True, speed=(0.01, 0.01)).motion(4)
    torch.testing.assert_close(fixed.velocity[:, 0], slow.velocity[:, 0], rtol=1e-9, atol=0)


def test_rotation_turns_the_ink_clockwise() -> None:
    """The main axis of the ink, from its second moments, turns by the stated angle per frame."""
    ranges = {**STILL, "angle": (-5, -5), "rotation": (10, 10)}
    data = VariedMovingMNIST("train", n_digits=1, n_frames=10, speed=(0, 0), **ranges)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    turning = 0
    for i in range(20):
        motion, weight = data.motion(i), data[i][:, 0] / data[i][:, 0].sum((1, 2), keepdim=True)
        dx = x - (weight * x).sum((1, 2), keepdim=True)
        dy = y - (weight * y).sum((1, 2), keepdim=True)
        xx, yy, xy = ((weight * product).sum((1, 2)) for product in (dx * dx, dy * dy, dx * dy))
        if float(torch.hypot(xx - yy, 2 * xy)[0] / (xx + yy)[0]) < 0.5:
            continue  # too round to have an axis
        axis = torch.atan2(2 * xy, xx - yy).rad2deg() / 2
        turned = (axis.diff() + 90).remainder(180) - 90
        assert turned.tolist() == pytest.approx([10] * 9, abs=0.5)  # measured 0.15
        assert motion.angle[0].tolist() == pytest.approx([-5 + 10 * t for t in range(10)])
        turning += 1
    assert turning >= 10


def test_scale_grows_the_ink_and_turns_back_at_its_ends() -> None:
    ranges = {**STILL, "scale": (0.8, 1.6), "scale_rate": (0.1, 0.1)}
    data = VariedMovingMNIST("train", n_digits=1, n_frames=40, **ranges)
    for i in range(5):
        scale = data.motion(i).scale[0]
        assert 0.8 - 1e-9 <= scale.min() <= 0.85
        assert 1.55 <= scale.max() <= 1.6 + 1e-9
        assert scale.diff().abs().median().item() == pytest.approx(0.1)
        mass = data[i].sum((1, 2, 3)).double() / scale**2
        assert (mass.std() / mass.mean()).item() < 0.01  # measured 0.0043


def test_centre_is_the_middle_of_the_ink() -> None:
    data = VariedMovingMNIST("train", n_digits=1, n_frames=20, **{**STILL, "scale": (0.7, 1.3)})
    for i in range(10):
        for frame, (x, y) in zip(data[i][:, 0], data.motion(i).centre[0].tolist(), strict=True):
            x0, x1, y0, y1 = ink_box(frame)
            assert (x0 + x1 + 1) / 2 == pytest.approx(x, abs=1)
            assert (y0 + y1 + 1) / 2 == pytest.approx(y, abs=1)


def test_digits_are_laid_over_each_other_by_the_maximum() -> None:
    data = VariedMovingMNIST("train", n_digits=3, n_frames=6)
    motion = data.motion(2)
    alone = []
    for k in range(3):
        one = type(motion)(*(part[k : k + 1] for part in motion))
        alone.append(render(data.images[one.digit].float() / 255, data._middle[one.digit], one, (64, 64)))
    assert torch.equal(torch.stack(alone).amax(0), data[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split must be one of train, val, test; got 'dev'"),
        ({"length": 0}, "length must be a positive integer; got 0"),
        ({"n_frames": 2.5}, r"n_frames must be a positive integer; got 2\.5"),
        ({"seed": -1}, "seed must be an integer >= 0; got -1"),
        ({"spin": (0, 1)}, "unknown range 'spin'; known: image_size, n_digits"),
        ({"image_size": 64}, r"image_size must be two positive integers \(H, W\); got 64"),
        ({"image_size": (64, 0)}, "image_size must be two positive integers"),
        ({"n_digits": True}, "n_digits must be a positive integer; got True"),
        ({"speed": (3, 1)}, r"speed must be two finite numbers, the lowest first; got \(3, 1\)"),
        ({"speed": (-1, 1)}, "speed must be >= 0"),
        ({"rotation": 5}, r"rotation must be two numbers \(lowest, highest\); got 5"),
        ({"rotation": (0, math.nan)}, "rotation must be two finite numbers"),
        ({"angle": ("a", "b")}, "angle must be two numbers"),
        ({"scale": (0, 1)}, "scale must be > 0"),
        ({"scale": (1, 9)}, r"image_size \(64, 64\) is too small: digits of digit_size 28 at scale 9 need"),
        ({"image_size": (16, 200)}, r"image_size \(16, 200\) is too small"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        VariedMovingMNIST(**arguments)
    assert "\n" not in str(error.value)


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    given = {"seed": np.int64(3), "length": np.int32(2), "n_frames": np.uint8(4), "n_digits": np.int64(1)}
    whole = {name: int(value) for name, value in given.items()}
    item = VariedMovingMNIST(**given)[np.int64(1)]
    assert torch.equal(item, VariedMovingMNIST(**whole)[1])


def test_ranges_are_frozen_and_plain_keeps_the_rest() -> None:
    ranges = MotionRanges(image_size=[32, 48], n_digits=1, speed=(1, 2))  # type: ignore[arg-type]
    assert ranges.image_size == (32, 48)
    with pytest.raises(AttributeError):
        ranges.n_digits = 3  # type: ignore[misc]
    plain = ranges.plain()
    assert (plain.speed, plain.n_digits, plain.rotation, plain.scale) == ((1, 2), 1, (0, 0), (1, 1))


# Digit images


def test_sklearn_digits_are_split_into_disjoint_images() -> None:
    splits = {name: load_digits("sklearn", name) for name in ("train", "val", "test")}
    assert {name: tuple(images.shape) for name, images in splits.items()} == {
        "train": (1257, 28, 28),
        "val": (270, 28, 28),
        "test": (270, 28, 28),
    }
    contents = {name: {image.numpy().tobytes() for image in images} for name, images in splits.items()}
    assert not contents["train"] & contents["val"]
    assert not contents["train"] & contents["test"]
    assert not contents["val"] & contents["test"]


def test_enlarged_digits_keep_their_ink_within_the_middle() -> None:
    from sklearn.datasets import load_digits as originals

    images = load_digits("sklearn", "train").float() / 255
    small = torch.from_numpy(originals().images[:1257]).float() / 16
    # 2.5 x 2.5 pixels a cell; the edges' ramp keeps the amount of ink (measured +1.7 %)
    assert images.sum().item() / (small.sum().item() * 6.25) == pytest.approx(1, abs=0.03)
    assert (
        images[:, :3].max() == images[:, -3:].max() == images[:, :, :3].max() == images[:, :, -3:].max() == 0
    )
    assert (images.amax((1, 2)) == 1).all()
    # the cells seen again by averaging: the drawing is the same one
    cells = torch.nn.functional.adaptive_avg_pool2d(images[:, None, 4:24, 4:24], 8)[:, 0]
    correlation = torch.corrcoef(torch.stack([cells.flatten(), small.flatten()]))[0, 1]
    assert correlation > 0.95  # measured 0.98


def test_sklearn_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._sklearn_digits.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="digits='sklearn' needs scikit-learn"):
        load_digits()


def idx(images: Tensor, magic: int = 2051) -> bytes:
    return struct.pack(">4I", magic, *images.shape) + images.numpy().tobytes()


@pytest.fixture
def idx_images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(36, 28, 28, dtype=torch.uint8)
    images[:, 4:24, 4:24] = torch.randint(0, 256, (36, 20, 20), generator=generator).to(torch.uint8)
    return images


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
def test_idx_files_give_back_their_images(tmp_path: Path, idx_images: Tensor, zipped: bool) -> None:
    train, test = idx(idx_images[:24]), idx(idx_images[24:])
    for name, data in (("train-images-idx3-ubyte", train), ("t10k-images-idx3-ubyte", test)):
        path = tmp_path / (name + ".gz" * zipped)
        path.write_bytes(gzip.compress(data) if zipped else data)
    assert torch.equal(load_digits(tmp_path, "train"), idx_images[:22])
    assert torch.equal(load_digits(tmp_path, "val"), idx_images[22:24])  # the last twelfth
    assert torch.equal(load_digits(str(tmp_path), "test"), idx_images[24:])
    data = VariedMovingMNIST("test", digits=tmp_path, n_frames=3)
    assert data[0].shape == (3, 1, 64, 64)
    assert int(data.motion(0).digit.max()) < 12


def test_idx_images_of_other_sizes_are_resized(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(torch.full((2, 10, 14), 200, dtype=torch.uint8)))
    assert VariedMovingMNIST("test", digits=tmp_path, digit_size=20).images.unique().tolist() == [200]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda whole: whole[:-1], "cut short: 36 images of 28x28 make 28240 bytes; it has 28239"),
        (lambda whole: whole + b"\0", "too long: 36 images of 28x28 make 28240 bytes; it has 28241"),
        (lambda whole: whole[:9], "has 16 bytes of header; this one ends after 9"),
        (lambda whole: b"", "has 16 bytes of header; this one ends after 0"),
        (lambda whole: whole[:3] + b"\1" + whole[4:], "begins with the number 2051; this one with 2049"),
        (lambda whole: b"PK\3\4" + whole[4:], "begins with the number 2051; this one with 1347093252"),
        (lambda whole: struct.pack(">4I", 2051, 0, 28, 28), "its header states 0 images of 28x28"),
    ],
    ids=["truncated", "trailing", "header", "empty", "labels", "zip", "no images"],
)
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
def test_broken_idx_files_are_named(tmp_path, idx_images, fault, message, zipped) -> None:  # type: ignore[no-untyped-def]
    path, data = tmp_path / ("t10k-images-idx3-ubyte" + ".gz" * zipped), fault(idx(idx_images))
    path.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(ValueError, match=message) as error:
        load_digits(tmp_path, "test")
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", ["tail", "middle", "not gzip"])
def test_broken_gzip_files_are_named(tmp_path: Path, idx_images: Tensor, cut: str) -> None:
    whole, path = idx(idx_images), tmp_path / "t10k-images-idx3-ubyte.gz"
    zipped = bytearray(gzip.compress(whole))
    if cut == "middle":
        zipped[len(zipped) // 2] ^= 0xFF
    path.write_bytes({"tail": zipped[:-20], "middle": zipped, "not gzip": whole}[cut])
    with pytest.raises(ValueError, match="not a whole gzip file") as error:
        load_digits(tmp_path, "test")
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_missing_idx_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz"
    ):
        load_digits(tmp_path, "val")
    with pytest.raises(
        FileNotFoundError, match="digits must be 'sklearn' or a folder .* 'mnst' is no folder"
    ):
        load_digits("mnst")
