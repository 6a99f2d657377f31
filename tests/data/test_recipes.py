"""The recipes of docs/data.md, on small files in the layouts of the public sources."""

from __future__ import annotations

import gzip
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import noise
from PIL import Image
from repository import ROOT

from motionrnn_ext.data import open_clips
from motionrnn_ext.metrics import rain_to_dbz


def make(monkeypatch: pytest.MonkeyPatch, program: str, *arguments: Path) -> None:
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / program), run_name="__main__")


def test_radar_of_trentino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sheets of 8 x 9 frames: dry ones, 25 with echo, a jump, and then echo to the end."""
    frames = np.zeros((144, 64, 64), np.uint8)
    frames[40:, 10:40, 10:40] = 150
    frames[65:] = 255 - frames[65:]
    frames[40:, 0, 0] = np.arange(104)
    folder = tmp_path / "TAASRAD19/umap_explorer/public/tiles"
    folder.mkdir(parents=True)
    for number, part in ((9, frames[:72]), (10, frames[72:])):
        sheet = part.reshape(8, 9, 64, 64).swapaxes(1, 2).reshape(8 * 64, 9 * 64)
        Image.fromarray(np.dstack([sheet] * 3 + [np.full_like(sheet, 255)])).save(folder / f"a_{number}.png")
    out = tmp_path / "data"
    make(monkeypatch, "radar_of_trentino.py", tmp_path / "TAASRAD19", out)
    # Runs at 40, 65, 90 and 115; of four, three are to train on.
    for split, starts in (("train", [40, 65, 90]), ("test", [115])):
        clips = open_clips("shanghai_h5", split, root=out, n_frames=25)
        wanted = [torch.from_numpy(frames[start : start + 25, None] / 255).float() for start in starts]
        assert len(clips) == len(starts)
        for i, clip in enumerate(wanted):
            torch.testing.assert_close(clips[i], clip, rtol=0, atol=1e-6)


def test_radar_of_finland_and_switzerland(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    radar = tmp_path / "pysteps-data/radar"
    # (dBZ + 32) 2 in bytes, of tiles with rain, without, and without a radar.
    dbz = np.zeros((256, 130))
    dbz[:128, :128] = 30
    stored = ((dbz + 32) * 2).astype(np.uint8)
    stored[128:] = 255
    for event in ("20160928", "20170509"):
        (radar / "fmi/pgm" / event).mkdir(parents=True)
        for t in range(3):
            Image.fromarray(stored).save(tmp_path / "one.pgm")
            path = radar / "fmi/pgm" / event / f"{event}120{t}_fmi.pgm.gz"
            path.write_bytes(gzip.compress((tmp_path / "one.pgm").read_bytes()))
    index = np.full((128, 256), 0, np.uint8)
    index[:, :128] = 110 + noise(128, 128) % 3
    index[0, 0] = 255
    palette = Image.fromarray(index)
    palette.putpalette([level for level in range(256) for _ in range(3)])
    for event in ("20150515", "20160711", "20170131"):
        (radar / "mch" / event).mkdir(parents=True)
        for t in range(3):
            palette.save(radar / "mch" / event / f"AQC15135154{t}F.gif", optimize=False)
    make(monkeypatch, "radar_of_pysteps.py", tmp_path / "pysteps-data", tmp_path / "data")
    options = {"n_frames": 3, "image_size": (128, 128)}
    for split, n in (("train", 1), ("test", 1)):
        clips = open_clips("shanghai_png", split, root=tmp_path / "data/radar_fmi", **options)
        assert len(clips) == n
        torch.testing.assert_close(clips[0], torch.full((3, 1, 128, 128), 109 / 255), rtol=0, atol=1e-6)
    for split, n in (("train", 2), ("test", 1)):
        clips = open_clips("shanghai_png", split, root=tmp_path / "data/radar_mch", **options)
        assert len(clips) == n
        # Rain at 1 mm/h has the index 20 log10(316) + 71.5 = 121.5.
        rates = (10 ** ((index[:, :128].astype(float) - 71.5) / 20) / 316) ** (1 / 1.5)
        wanted = np.vectorize(rain_to_dbz)(rates) / 70
        wanted[0, 0] = 0
        found = clips[0][1, 0].numpy()
        assert np.abs(found - wanted).max() <= 0.51 / 255
