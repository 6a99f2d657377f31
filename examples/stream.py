"""Predict a stream frame by frame with `model.step`, in memory that does not grow.

The state holds all that the model knows of the past. `step` takes it and returns the next one.
First the program shows that steps give the numbers of one rollout over the whole clip. Then it
learns from a stream: `detach` cuts the state from the graph, so that backward ends there.
"""

import itertools

import torch
import torch.nn.functional as F

from motionrnn_ext import MotionRNN


def camera(size=32):
    """An endless stream of frames (1, 1, H, W): a bar that moves to the right."""
    frame = torch.zeros(1, 1, size, size)
    frame[..., 8:11] = 1
    for t in itertools.count():
        yield frame.roll(t, -1)


def n_bytes(state):
    parts = [*itertools.chain(*state.layers, *state.motion)]
    return sum(part.numel() * part.element_size() for part in parts)


torch.manual_seed(0)
# Motion adds up from frame to frame. In a long stream `max_offset` keeps it near the map.
model = MotionRNN("convlstm", 1, (16, 16), patch_size=2, filter_size=3, max_offset=1.0)

clip = torch.stack(list(itertools.islice(camera(), 10)), 1)  # (1, 10, 1, H, W)
with torch.no_grad():
    rollout, state, steps = model(clip, n_input=10), None, []
    for frame in clip[:, :-1].unbind(1):
        prediction, state = model.step(frame, state)
        steps.append(prediction)
difference = (torch.stack(steps, 1) - rollout).abs().max().item()
print(f"steps and rollout differ by {difference:.1e}")
print(f"state after {len(steps)} frames: {n_bytes(state):,} bytes")

optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
stream, state, loss, window = camera(), None, 0.0, 8
frame = next(stream)
for count in range(1, 201):
    prediction, state = model.step(frame, state)
    frame = next(stream)
    loss = loss + F.mse_loss(prediction, frame) / window
    if count % window == 0:  # learn from the last 8 frames, then forget their graph
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if count in (window, 200):
            print(f"frame {count}: loss {loss.item():.4f}, state {n_bytes(state):,} bytes")
        state, loss = state.detach(), 0.0
