"""Put a MotionGRU between the layers of a convolutional RNN of your own, and train the result.

The network below is plain PyTorch, but for the layer `self.motion` and the line that calls it.
"""

import torch
import torch.nn.functional as F
from torch import nn

from motionrnn_ext import MotionGRU


class ConvRNNCell(nn.Module):
    def __init__(self, in_channels, channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels + channels, channels, 3, padding=1)

    def forward(self, x, hidden):
        return torch.tanh(self.conv(torch.cat([x, hidden], 1)))


class Predictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.lower, self.upper = ConvRNNCell(1, 16), ConvRNNCell(16, 16)
        self.motion = MotionGRU(16)
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, frames):  # (B, T, 1, H, W) -> predictions of frames 1..T-1
        lower = upper = frames.new_zeros(len(frames), 16, *frames.shape[-2:])
        motion_state, predictions = None, []  # None: no motion before the first frame
        for frame in frames[:, :-1].unbind(1):
            lower = self.lower(frame, lower)
            moved, motion_state = self.motion(lower, motion_state)
            upper = self.upper(moved, upper)
            predictions.append(self.head(upper))
        return torch.stack(predictions, 1)


def moving_squares(batch_size=4, length=6, size=16):
    """Clips of a bright square that moves by one pixel per frame from a random place."""
    first = torch.zeros(batch_size, 1, size, size)
    first[:, :, :5, :5] = 1
    first = torch.stack([f.roll(torch.randint(size, (2,)).tolist(), (-2, -1)) for f in first])
    return torch.stack([first.roll(t, -1) for t in range(length)], 1)


torch.manual_seed(0)
model = Predictor()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(1, 41):
    frames = moving_squares()
    loss = F.mse_loss(model(frames), frames[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (1, 40):
        print(f"step {step}: loss {loss.item():.4f}")
print(f"the MotionGRU has {sum(p.numel() for p in model.motion.parameters()):,} parameters")
