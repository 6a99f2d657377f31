"""Data sets of clips to learn from: generated on the fly, or read from files in the public layouts.

from motionrnn_ext.data import VariedMovingMNIST, open_clips

train = VariedMovingMNIST("train", seed=0, length=10000)       # items: float32 (T, 1, H, W) in [0, 1]
val = VariedMovingMNIST("val", seed=0, length=1000)            # other digits, other motions
test = VariedMovingMNIST("test", seed=0, length=1000, digits="path/to/idx", rotation=(-15, 15))
plain = VariedMovingMNIST("test", plain=True)                  # Moving MNIST: no rotation, no scaling
mine = open_clips("frames", "train", root="path/to/frames")    # by name: SEQUENCE/FRAME.png, in grey
busy = open_clips("frames_rgb", "train", root="path/to/films", clip_step=5, min_motion=0.01)
walk = open_clips("human36m", "train", root="path/to/jpgs", n_frames=8, image_size=(128, 128))

`DATASETS` lists the names. Each class documents the files that it reads and its rules.
"""

from __future__ import annotations

from .arguments import SPLITS
from .digits import load_digits
from .frames import FrameSequences
from .human36m import Human36M, Human36MOpenSTL
from .moving_mnist import Motion, MotionRanges, VariedMovingMNIST, render
from .moving_mnist_files import MovingMNISTNpy, MovingMNISTNpz
from .radar_h5 import RadarH5
from .radar_like import RadarLike, RadarMotion, RadarRanges
from .registry import DATASETS, DataSet, open_clips

__all__ = [
    "DATASETS",
    "SPLITS",
    "DataSet",
    "FrameSequences",
    "Human36M",
    "Human36MOpenSTL",
    "Motion",
    "MotionRanges",
    "MovingMNISTNpy",
    "MovingMNISTNpz",
    "RadarH5",
    "RadarLike",
    "RadarMotion",
    "RadarRanges",
    "VariedMovingMNIST",
    "load_digits",
    "open_clips",
    "render",
]
