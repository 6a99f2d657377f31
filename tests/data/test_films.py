"""A user's own frames, as files of several kinds."""

from __future__ import annotations

import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from motionrnn_ext import MotionRNN
from motionrnn_ext.data import videos
from motionrnn_ext.data.images import read_image
from motionrnn_ext.evaluation.clips import fitting, last_frames, read_frames


def moving(colours: bool) -> np.ndarray:
    """uint8 (4, 6, 8, 3) in few colours, so that a palette holds them exactly."""
    shape = (4, 6, 8, 3) if colours else (4, 6, 8, 1)
    frames = 60 * np.random.default_rng(0).integers(0, 4, shape, np.uint8)
    return frames if colours else np.repeat(frames, 3, axis=3)


def write_film(path: Path, frames: np.ndarray) -> None:
    first, *others = (Image.fromarray(frame) for frame in frames)
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, **options)


def as_floats(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("ending", ["gif", "webp", "tiff"])
@pytest.mark.parametrize("colours", [True, False])
def test_moving_images(ending: str, colours: bool, tmp_path: Path) -> None:
    frames, path = moving(colours), tmp_path / f"film.{ending}"
    write_film(path, frames)
    assert torch.equal(read_frames(path, "RGB"), as_floats(frames))
    assert torch.equal(read_frames(path, "BGR"), as_floats(frames).flip(1))


@pytest.mark.parametrize("ending", ["bmp", "png"])
def test_images_in_colour_are_made_grey_and_it_is_said(ending: str, tmp_path: Path) -> None:
    for name, colours in (("colour", True), ("grey", False)):
        (tmp_path / name).mkdir()
        for t, frame in enumerate(moving(colours)):
            Image.fromarray(frame).save(tmp_path / name / f"{t}.{ending}")
    with pytest.warns(
        UserWarning, match="colour is in colour; its frames are made grey, as the model's are"
    ) as said:
        found = read_frames(tmp_path / "colour")
    assert said[0].filename == __file__
    wanted = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in moving(True)])
    assert torch.equal(found, as_floats(wanted[..., None]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(read_frames(tmp_path / "grey"), as_floats(moving(False))[:, :1])
        read_frames(tmp_path / "colour", "RGB")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_with_channels_last(channels: int, dtype: Any, tmp_path: Path) -> None:
    frames = moving(True)[..., :channels]
    stored = frames if dtype is np.uint8 else frames.astype(np.float32) / np.float32(255)
    np.save(tmp_path / "last.npy", stored)
    np.save(tmp_path / "first.npy", stored.transpose(0, 3, 1, 2))
    for name in ("last.npy", "first.npy"):
        assert torch.equal(read_frames(tmp_path / name, "RGB"), as_floats(frames).expand(-1, 3, -1, -1))
        assert torch.equal(read_frames(tmp_path / name, "BGR"), as_floats(frames).expand(-1, 3, -1, -1))


def test_arrays_in_colour_are_made_grey_and_it_is_said(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).random((4, 6, 8, 3))
    frames[1, 2, 3] = np.nan
    np.save(tmp_path / "clip.npy", frames)
    with pytest.warns(
        UserWarning, match="clip.npy is in colour; its frames are made grey, as the model's are"
    ) as said:
        found = read_frames(tmp_path / "clip.npy", missing=np.nan)
    assert said[0].filename == __file__
    wanted = torch.from_numpy(frames @ np.array([0.299, 0.587, 0.114])).float()[:, None]
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5, equal_nan=True)
    frames[..., 1:] = frames[..., :1]
    np.save(tmp_path / "grey.npy", frames)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_frames(tmp_path / "grey.npy", missing=np.nan)
    torch.testing.assert_close(
        found,
        torch.from_numpy(frames[..., :1]).float().permute(0, 3, 1, 2),
        rtol=0,
        atol=1e-6,
        equal_nan=True,
    )


def test_a_video_without_a_decoder_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos.importlib.util, "find_spec", lambda _: None)
    (tmp_path / "film.mp4").write_bytes(b"")
    with pytest.raises(
        ModuleNotFoundError, match=r"film.mp4 is a video; reading it needs the package av: pip install av"
    ):
        read_frames(tmp_path / "film.mp4")


@pytest.mark.parametrize(
    ("package", "plugin", "options"), [("av", "pyav", {"format": "rgb24"}), ("imageio_ffmpeg", "FFMPEG", {})]
)
def test_a_video_is_decoded_by_what_is_installed(
    package: str, plugin: str, options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """imageio's part is played by a stand-in, as no decoder is among what the tests need."""

    def imiter(path: Path, **given: str) -> Iterator[np.ndarray]:
        assert given == {"plugin": plugin, **options} and path.name == "film.MP4"
        yield from moving(True)

    monkeypatch.setattr(videos.importlib.util, "find_spec", lambda name: name == package or None)
    v3 = SimpleNamespace(imiter=imiter)
    monkeypatch.setitem(sys.modules, "imageio", SimpleNamespace(v3=v3))
    monkeypatch.setitem(sys.modules, "imageio.v3", v3)
    (tmp_path / "film.MP4").write_bytes(b"")
    assert torch.equal(read_frames(tmp_path / "film.MP4", "RGB"), as_floats(moving(True)))


@pytest.mark.parametrize("package", ["av", "imageio_ffmpeg"])
def test_a_real_video(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    import imageio.v3

    frames = np.repeat(np.linspace(40, 200, 5).astype(np.uint8), 64 * 64 * 3).reshape(5, 64, 64, 3)
    imageio.v3.imwrite(tmp_path / "film.mp4", frames, fps=10)
    found = read_frames(tmp_path / "film.mp4", "RGB")
    assert found.shape == (5, 3, 64, 64)
    torch.testing.assert_close(found, as_floats(frames), rtol=0, atol=4 / 255)  # lossy


def test_files_that_are_no_films(tmp_path: Path) -> None:
    (tmp_path / "text.gif").write_text("text")
    with pytest.raises(ValueError, match=r"text.gif: damaged, or not a gif file"):
        read_frames(tmp_path / "text.gif")
    with pytest.raises(ValueError, match=r"none.gif cannot be read: there is no such file"):
        read_frames(tmp_path / "none.gif")
    write_film(tmp_path / "film.gif", moving(True))
    whole = (tmp_path / "film.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.gif: damaged"):
        read_frames(tmp_path / "cut.gif")
    sizes = [Image.new("RGB", (8, 6)), Image.new("RGB", (8, 8))]
    sizes[0].save(tmp_path / "sizes.tiff", save_all=True, append_images=sizes[1:])
    with pytest.raises(ValueError, match=r"sizes.tiff: frames are 6x8, 8x8; all must have one size"):
        read_frames(tmp_path / "sizes.tiff")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.tiff")
    with pytest.raises(ValueError, match=r"deep.tiff: frames must have 8 bits a channel; .* mode 'I;16'"):
        read_frames(tmp_path / "deep.tiff")


def test_what_a_folder_may_hold(tmp_path: Path) -> None:
    grey = [Image.fromarray(frame) for frame in moving(False)]
    for image, name in zip(grey, ["f9.png", "f10.tif", "f11.webp", "f12.bmp"]):
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    assert torch.equal(read_frames(tmp_path), as_floats(moving(False))[:, :1])
    grey[0].save(tmp_path / "f10.png")
    with pytest.raises(
        ValueError, match=r"has a frame twice, as f10.png and f10.tif; it should have each once"
    ):
        read_frames(tmp_path)
    (tmp_path / "f10.tif").unlink()
    write_film(tmp_path / "f13.tif", moving(False))
    with pytest.raises(
        ValueError, match=r"f13.tif is a film of 4 frames; it should be one image, or be given alone"
    ):
        read_frames(tmp_path)


def test_transparent_pixels_are_black_and_it_is_said_once(tmp_path: Path) -> None:
    """Whatever colour they hide; half transparent ones are half as bright."""
    images = [Image.new("RGBA", (8, 6), (200, 200, 200, alpha)) for alpha in (255, 0, 128)]
    (tmp_path / "folder").mkdir()
    for t, image in enumerate(images):
        image.save(tmp_path / "folder" / f"{t}.png")
    images[0].save(tmp_path / "film.webp", save_all=True, append_images=images[1:], lossless=True, exact=True)
    for name in ("folder", "film.webp"):
        with pytest.warns(
            UserWarning, match=f"{name} has transparent pixels; they are laid over black"
        ) as said:
            found = read_frames(tmp_path / name, "RGB")
        assert {warning.filename for warning in said} == {__file__}
        assert len({str(warning.message) for warning in said}) == 1
        assert (found[0] * 255 == 200).all() and (found[1] == 0).all()
        assert ((found[2] * 255 - 100).abs() <= 1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images[0].save(tmp_path / "opaque.png")
        read_frames(tmp_path / "opaque.png")


def test_photographs_are_turned_as_their_cameras_say(tmp_path: Path) -> None:
    turned, pixels = Image.Exif(), moving(True)[0]
    turned[0x0112] = 6  # the first row is the right side
    (tmp_path / "folder").mkdir()
    Image.fromarray(pixels).save(tmp_path / "folder" / "0.png", exif=turned)
    for path in (tmp_path / "folder", tmp_path / "folder" / "0.png"):
        assert torch.equal(read_frames(path, "RGB")[0], as_floats(np.rot90(pixels, -1).copy()[None])[0])


@pytest.mark.parametrize("kind", ["folder", "film.gif", "clip.npy", "clip.npz", "clip.pt"])
def test_the_last_frames(kind: str, tmp_path: Path) -> None:
    """Earlier images are not even read: one may be of another size."""
    path, frames = tmp_path / kind, moving(False)
    array = frames[..., 0].astype(np.float32) / 255
    if kind == "folder":
        path.mkdir()
        for t, frame in enumerate(frames):
            Image.fromarray(frame).save(path / f"{t}.png")
        Image.new("L", (3, 3)).save(path / "0.png")
    elif kind == "film.gif":
        write_film(path, frames)
    else:
        save = {".npy": np.save, ".npz": np.savez, ".pt": lambda p, a: torch.save(torch.from_numpy(a), p)}
        save[path.suffix](path, array)
    found, count = last_frames(path, 3)
    assert count == 4 and torch.equal(found, as_floats(frames)[1:, :1])


@pytest.mark.parametrize("dtype", [">f4", "float64", "float16", "bool"])
def test_arrays_of_other_dtypes_and_layouts(dtype: str, tmp_path: Path) -> None:
    frames = (moving(True) > 60).astype(dtype)
    np.save(tmp_path / "clip.npy", np.asfortranarray(frames))
    np.savez_compressed(tmp_path / "clip.npz", frames)
    for name in ("clip.npy", "clip.npz"):
        found = read_frames(tmp_path / name, "RGB")
        assert torch.equal(found, torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2))


def test_tensors(tmp_path: Path) -> None:
    frames, path = torch.rand(4, 1, 6, 8).to(torch.bfloat16), tmp_path / "clip.pt"
    for stored in (
        frames,
        frames.to_sparse(),
        frames.float().neg().neg().requires_grad_(),
        torch._neg_view(-frames),
    ):
        torch.save(stored, path)
        assert torch.equal(read_frames(path), frames.float())
    for stored, found in (({"frames": frames}, "a dict"), ([frames], "a list")):
        torch.save(stored, path)
        with pytest.raises(
            ValueError, match=f"clip.pt holds {found}; it should hold one tensor: save that alone"
        ):
            read_frames(path)
    path.write_text("text")
    with pytest.raises(ValueError, match=r"clip.pt is not a file of one tensor$"):
        read_frames(path)


def test_arrays_that_are_not_one_clip(tmp_path: Path) -> None:
    clip, picture = np.zeros((4, 6, 8), np.float32), np.zeros((6, 8, 3), np.float32)
    np.savez(tmp_path / "two.npz", a=clip, b=clip)
    np.savez(tmp_path / "none.npz")
    np.save(tmp_path / "picture.npy", picture)
    np.save(tmp_path / "narrow.npy", clip[..., :3].transpose(0, 2, 1)[..., :3])
    for name, text in (
        ("two.npz", r"two.npz holds the arrays a, b; it should hold one: save that as a .npy file"),
        ("none.npz", r"none.npz holds no array; it should hold one"),
        ("picture.npy", r"it holds float32 \(6, 8, 3\), which is one picture"),
    ):
        with pytest.raises(ValueError, match=text):
            read_frames(tmp_path / name)
    assert read_frames(tmp_path / "narrow.npy").shape == (4, 1, 3, 3)


def test_what_is_padded_to_which_size() -> None:
    model = MotionRNN("convlstm", in_channels=1, hidden_channels=(4, 4), patch_size=2)  # divisible by 4
    frames = torch.rand(3, 1, 7, 8)
    assert fitting(model, torch.rand(3, 1, 8, 12), False).shape == (3, 1, 8, 12)
    padded = fitting(model, frames, True)
    assert torch.equal(padded, torch.cat([frames, frames[..., -1:, :]], dim=-2))
    plain = MotionRNN("convlstm", in_channels=1, hidden_channels=(4,), patch_size=2, motion_gru=False)
    assert fitting(plain, torch.rand(3, 1, 6, 9), True).shape == (3, 1, 6, 10)
    fixed = MotionRNN("mim", in_channels=1, hidden_channels=(4, 4), patch_size=2, image_size=(12, 16))
    assert fitting(fixed, frames, True).shape == (3, 1, 12, 16)
    too_large = torch.rand(3, 1, 16, 16)
    assert fitting(fixed, too_large, True) is too_large  # the model says what size it has


def test_an_image_that_is_shown_longer_is_repeated(tmp_path: Path) -> None:
    columns = [0, 1, 2, 2, 2, 2, 3, 4, 5, 5]
    frames = np.zeros((10, 8, 8, 3), np.uint8)
    frames[range(10), :, columns] = 200
    first, *others = (Image.fromarray(frame) for frame in frames)
    # Pillow joins equal frames; the last image counts once.
    first.save(tmp_path / "film.gif", save_all=True, append_images=others, duration=100)
    words = "film.gif: 1 of 6 images are shown longer than others and are repeated, as equal frames"
    with pytest.warns(UserWarning, match=words):
        found = read_frames(tmp_path / "film.gif")
    assert found[:, 0, 0].argmax(-1).tolist() == columns[:-1]


def test_the_preview_of_a_photograph_is_no_frame(tmp_path: Path) -> None:
    photograph, preview = Image.new("RGB", (8, 8)), Image.new("RGB", (4, 4))
    photograph.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[preview])
    assert read_frames(tmp_path / "photo.jpg", "RGB").shape == (1, 3, 8, 8)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_are_refused(channels: int, tmp_path: Path) -> None:
    pixels = np.arange(8 * 8 * channels, dtype=">u2").reshape(8, 8, channels)
    write_png_of_16_bits(tmp_path / "deep.png", pixels)
    for read in (lambda: read_image(tmp_path / "deep.png", 3), lambda: read_frames(tmp_path / "deep.png")):
        with pytest.raises(
            ValueError, match="frames must have 8 bits a channel; this image has pillow's mode .*;16B"
        ):
            read()


def write_png_of_16_bits(path: Path, pixels: np.ndarray) -> None:
    """Write (h, w, 2 to 4) by hand, because pillow writes grey alone in 16 bits."""
    height, width, channels = pixels.shape
    kind = {2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_given_frames_are_read_by_pixel_max(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 71, (4, 8, 8))
    np.save(tmp_path / "bytes.npy", stored.astype(np.uint8))
    np.save(tmp_path / "floats.npy", stored.astype(np.float32))
    (tmp_path / "images").mkdir()
    for t, frame in enumerate(stored.astype(np.uint8)):
        Image.fromarray(frame).save(tmp_path / "images" / f"{t}.png")
    wanted = torch.from_numpy(stored)[:, None].float() / 70
    for name in ("bytes.npy", "floats.npy", "images"):
        assert torch.equal(last_frames(tmp_path / name, None, pixel_max=70)[0], wanted)
        with pytest.warns(
            UserWarning, match=r"values are outside of 0 to 60 \(--pixel-max\), and count as 0 and 1"
        ):
            found, _ = last_frames(tmp_path / name, None, pixel_max=60)
        torch.testing.assert_close(found, (wanted * 70 / 60).clamp(0, 1))
    np.save(tmp_path / "unit.npy", wanted.numpy())
    with pytest.warns(UserWarning, match=r"has no value above .*, and 70 .* give --pixel-max 1"):
        last_frames(tmp_path / "unit.npy", None, pixel_max=70)


def test_a_gap_among_the_given_frames_is_said(tmp_path: Path) -> None:
    for minute in (0, 5, 10, 15, 20):
        for hour in (11, 19):
            Image.new("L", (8, 8)).save(tmp_path / f"20170509_{hour}{minute:02d}.png")
    with pytest.warns(UserWarning, match="20170509_1120.png and 20170509_1900.png: there is a gap in time"):
        last_frames(tmp_path, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        last_frames(tmp_path, 5)
