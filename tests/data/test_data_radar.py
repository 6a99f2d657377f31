"""Radar-like fields: reproducible from (seed, split, index) alone, and what their stated equations say."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from motionrnn_ext.data import RadarLike, RadarRanges


def test_item_is_float_frames_in_steps_of_a_byte() -> None:
    item = RadarLike("train", n_frames=9, image_size=(40, 56))[0]
    assert item.shape == (9, 1, 40, 56)
    assert item.dtype == torch.float32 and item.is_contiguous()
    assert item.min() == 0 and item.max() <= 1
    assert torch.equal((item * 255).round() / 255, item)


def test_items_depend_on_seed_split_and_index_alone() -> None:
    data = RadarLike("train", seed=3, length=50, image_size=(24, 24))
    items = [data[i] for i in range(4)]
    again = RadarLike("train", seed=3, length=9, image_size=(24, 24))
    for i in (3, 0, 2, 0):
        torch.rand(7)  # the global generator plays no part
        assert torch.equal(again[i], items[i])
    assert torch.equal(again[-6], items[3])
    others = [
        RadarLike("train", seed=4, image_size=(24, 24))[0],
        RadarLike("val", seed=3, image_size=(24, 24))[0],
    ]
    assert len({item.numpy().tobytes() for item in [*items, *others]}) == 6


def test_longer_clips_begin_the_same_and_workers_change_nothing() -> None:
    short, long = (RadarLike("test", n_frames=n, length=4, image_size=(24, 24)) for n in (5, 12))
    assert torch.equal(long[3][:5], short[3])
    loaded = torch.cat(list(DataLoader(pickle.loads(pickle.dumps(short)), batch_size=2, num_workers=1)))
    assert torch.equal(loaded, torch.stack([short[i] for i in range(4)]))


def test_a_clip_shows_its_motion() -> None:
    """Pixel by pixel from the equations in the module's text."""
    data = RadarLike("train", seed=1, n_frames=6, image_size=(20, 26))
    ranges, motion, clip = data.ranges, data.motion(2), data[2]
    assert 0.05 < float((clip > 0).float().mean()) < 0.95
    for t in (0, 5):
        for i, j in np.ndindex(20, 26):
            point, echo = np.array([j + 0.5, i + 0.5]), 0.0
            for centre, angle, axes, strength in zip(
                motion.centre[:, t], motion.angle[:, t], motion.axes[:, t], motion.strength[:, t]
            ):
                a = math.radians(angle)
                dx, dy = point - centre.numpy()
                along = (math.cos(a) * dx + math.sin(a) * dy) / float(axes[0])
                across = (-math.sin(a) * dx + math.cos(a) * dy) / float(axes[1])
                echo += float(strength) * math.exp(-(along**2 + across**2) / 2)
            a = math.radians(motion.turn[t])
            dx, dy = point - motion.pivot[t].numpy()  # and from there back to where the air was in frame 0
            came_from = math.cos(a) * dx + math.sin(a) * dy, -math.sin(a) * dx + math.cos(a) * dy
            waves = [
                math.cos(kx * came_from[0] + ky * came_from[1] + phase)
                for kx, ky, phase in motion.waves.tolist()
            ]
            echo = echo * (1 + ranges.roughness * float(np.mean(waves))) - ranges.threshold
            assert float(clip[t, 0, i, j]) == pytest.approx(min(max(echo, 0), 1), abs=0.51 / 255)


def test_cells_are_carried_by_the_flow_and_grow_and_decay() -> None:
    data, side = RadarLike("train", n_frames=40, image_size=(48, 64)), 48
    ranges = data.ranges
    for index in range(5):
        motion = data.motion(index)
        velocity = motion.pivot.diff(dim=0)
        assert torch.allclose(velocity, velocity[:1].expand_as(velocity))
        assert ranges.speed[0] * side <= float(velocity[0].norm()) <= ranges.speed[1] * side
        rate = motion.turn.diff()
        assert torch.allclose(rate, rate[:1]) and 1 <= abs(float(rate[0])) <= 5
        arm = motion.centre - motion.pivot  # (N, T, 2): turns by the rate, keeps its length
        length = arm.norm(dim=-1)
        assert torch.allclose(length, length[:, :1].expand_as(length))
        bearing = torch.atan2(arm[..., 1], arm[..., 0])
        turned = (
            torch.remainder(bearing.diff(dim=1) - math.radians(float(rate[0])) + math.pi, 2 * math.pi)
            - math.pi
        )
        assert turned.abs().max() < 1e-9
        growth = motion.strength / motion.strength.amax(1, keepdim=True)
        assert growth.min() >= ranges.floor - 1e-9
        assert float((growth.amax(1) - growth.amin(1)).min()) > 0.3  # in 40 frames every cell changes much
        ratio = motion.axes / motion.strength[..., None]
        assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio))  # size follows strength


def test_fields_scale_with_the_frame() -> None:
    """The same cells in a frame of twice the size: every second pixel's neighbourhood shows the same."""
    small, large = (RadarLike("val", n_frames=2, image_size=(n, n))[1] for n in (32, 64))
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert float((halved - small).abs().mean()) < 0.01


def test_ranges_of_ones_own_and_bad_arguments() -> None:
    still = RadarRanges(speed=(0, 0), rotation=(0, 0), spin=(0, 0), floor=1.0)
    item = RadarLike("train", n_frames=3, image_size=(24, 24), ranges=still)[0]
    assert torch.equal(item, item[:1].expand_as(item)) and item.max() > 0
    for options, message in (
        ({"split": "all"}, "split must be one of train, val, test; got 'all'"),
        ({"seed": -1}, "seed must be an integer >= 0; got -1"),
        ({"length": 0}, "length must be a positive integer; got 0"),
        ({"n_frames": 0}, "n_frames must be a positive integer; got 0"),
        ({"image_size": (0, 3)}, "image_size must be two positive integers"),
    ):
        with pytest.raises(ValueError) as error:
            RadarLike(**options)
        assert message in str(error.value)
    for options, message in (
        ({"threshold": math.nan}, "threshold must be a finite number; got nan"),
        ({"floor": "0.3"}, "floor must be a finite number; got '0.3'"),
        ({"roughness": 1j}, "roughness must be a finite number; got 1j"),
        ({"spread": True}, "spread must be a finite number; got True"),
        ({"speed": 0.1}, "speed must be two numbers (lowest, highest); got 0.1"),
        ({"period": (14, math.inf)}, "period must be two finite numbers, the lowest first; got (14, inf)"),
        ({"n_cells": 2.5}, "n_cells must be a positive integer; got 2.5"),
        ({"period": (0, 0)}, "period must be above 0; got (0.0, 0.0)"),
        ({"wavelength": (-1, 1)}, "wavelength must be above 0; got (-1.0, 1.0)"),
        ({"floor": 2}, "floor must be from 0 to 1; got 2"),
    ):
        with pytest.raises(ValueError) as error:
            RadarRanges(**options)
        assert message in str(error.value)
    with pytest.raises(IndexError, match=r"0\.\.2; got 3"):
        RadarLike("train", length=3)[3]
