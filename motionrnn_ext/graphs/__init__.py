"""A MotionRNN in CUDA graphs: a whole rollout, or the steps of a stream, by one launch from the host.

rollout.py      `graphed`, for training and prediction
stream.py       `graphed_step`, for a stream of frames
capture.py      recording a graph and playing it
conditions.py   what a graph depends on, and models that it cannot hold
"""

from .rollout import GraphedRollout, graphed
from .stream import GraphedStep, graphed_step

__all__ = ["GraphedRollout", "GraphedStep", "graphed", "graphed_step"]
