"""Register a recurrent cell of your own, and build MotionRNN on it.

`register_predictor` gives the class below a name. `MotionRNN` takes that name from then on, and so
does the command line: `motionrnn train --import own_predictor --predictor conv_gru --out FOLDER`.
"""

import torch
import torch.nn.functional as F

from motionrnn_ext import MotionRNN
from motionrnn_ext.data import VariedMovingMNIST
from motionrnn_ext.layers import LSTMState, RecurrentCell, register_predictor


@register_predictor("conv_gru")
class ConvGRUCell(RecurrentCell):
    """A convolutional GRU. Its state is the hidden map alone."""

    def __init__(self, in_channels, hidden_channels, filter_size=5, **options):
        super().__init__(in_channels, hidden_channels, filter_size, **options)
        self.gates = self.convolution(in_channels + hidden_channels, 2 * hidden_channels)
        self.candidate = self.convolution(in_channels + hidden_channels, hidden_channels)

    def forward(self, x, state, memory=None, highway=None):
        u, r = self.gates(torch.cat([x, state.hidden], 1)).sigmoid().chunk(2, 1)
        z = self.candidate(torch.cat([x, r * state.hidden], 1)).tanh()
        h = torch.lerp(state.hidden if highway is None else highway, z, u)
        return h, LSTMState(h, h), memory


def train(model, steps=15):
    """The first and the last loss of a short training on moving digits."""
    clips = VariedMovingMNIST("train", n_frames=6, image_size=(24, 24), digit_size=12)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for step in range(steps):
        frames = torch.stack([clips[4 * step + i] for i in range(4)])
        loss = F.mse_loss(model(frames, n_input=3), frames[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


if __name__ == "__main__":  # so that --import registers the cell and trains nothing
    for label, on in (("conv_gru", False), ("MotionRNN-conv_gru", True)):
        torch.manual_seed(0)
        options = {"filter_size": 3, "motion_gru": on, "highway": on}
        model = MotionRNN("conv_gru", 1, (16, 16), patch_size=2, **options)
        n_parameters = sum(p.numel() for p in model.parameters())
        first, last = train(model)
        print(f"{label}: {n_parameters:,} parameters, loss {first:.4f} -> {last:.4f}")
