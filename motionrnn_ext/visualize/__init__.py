"""Pictures of predictions, motion and training in one style, as PNG and GIF files.

    strip               a clip's inputs, true futures and predictions, frame by frame
    gif                 truth and predictions side by side, moving
    arrows              motion trends over frames; `trend_field` returns their numbers
    taps                the positions that the taps of the warps read; `sampling_points` returns their numbers
    motion_gif          frames, arrows and taps side by side, moving
    loss_curves         losses of Lightning's CSV logs; `read_log` returns their numbers
    lead_time_curves    metrics against the lead time
    dots                results over seeds, a dot per training

Frames are tensors (T, C, H, W), floats in [0, 1] or uint8, with C = 1 or 3; a nan is drawn black. Predictions are a
mapping from the models' labels to tensors (T - n_input, C, H, W). Frames of radar are drawn in the usual colours of
reflectivity, with their bar, if `dbz` says what pixels 0 and 1 stand for. Every function writes one file, replaces an
older file of that name, makes its parent folders and returns its path. matplotlib and Pillow are imported at the first
call. pyplot is never imported, so the caller's own figures and backend stay as they are.
"""

from .curves import lead_time_curves, loss_curves, read_log
from .dots import dots
from .motion import arrows, motion_gif, trend_field
from .page import style
from .strips import gif, strip
from .taps import sampling_points, taps

__all__ = [
    "arrows",
    "dots",
    "gif",
    "lead_time_curves",
    "loss_curves",
    "motion_gif",
    "read_log",
    "sampling_points",
    "strip",
    "style",
    "taps",
    "trend_field",
]
