"""Train MotionRNN on folders of PNG frames, then score and use the result.

Run `python train_on_frames.py [FOLDER]`, where FOLDER/SEQUENCE/FRAME.png are grey frames in the
order of their names. Without FOLDER the program draws 24 sequences of a moving disc in a temporary
folder. It needs the packages of `motionrnn_ext[train]`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from motionrnn_ext.evaluation.clips import held_out
from motionrnn_ext.evaluation.scores import score
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.runs import load_run
from motionrnn_ext.training.train import train


def draw_sequences(folder, n_sequences=24, length=8, size=32):
    rows, columns = np.mgrid[:size, :size]
    random = np.random.default_rng(0)
    for number in range(n_sequences):
        (folder / f"sequence{number:02}").mkdir(parents=True)
        (row, column), (down, right) = random.uniform(10, 22, 2), random.uniform(-1.5, 1.5, 2)
        for t in range(length):
            squared = (rows - row - t * down) ** 2 + (columns - column - t * right) ** 2
            disc = (255 * np.exp(-squared / 20)).astype(np.uint8)
            Image.fromarray(disc).save(folder / f"sequence{number:02}" / f"frame{t:03}.png")


def main(work):
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else work / "frames"
    if len(sys.argv) == 1:
        draw_sequences(root)
    config = Config(
        predictor="convlstm", hidden=(16, 16), patch_size=2, filter_size=3,
        dataset="frames", root=str(root), image_size=(32, 32), n_input=4, n_output=4,
        steps=100, batch_size=4, lr=1e-2, lr_schedule="one-cycle", sampling="none", loss="l2",
        val_every=50, accelerator="cpu",
    )  # fmt: skip
    best = train(config, work / "run", progress=False)  # returns the best checkpoint
    print(f"trained {config.steps} steps; best checkpoint: {best.name}")

    run, clips = load_run(best), held_out(config)  # sequences that no training has seen
    for label, result in score({"MotionRNN-ConvLSTM": run.model}, clips, config.n_input).items():
        print(f"{label:20} MSE {result['mse']:.2f}" + " (baseline)" * ("baseline" in result))
    future = run.model.predict(clips[0][None, : config.n_input], n_future=4)
    print(f"4 frames ahead of {config.n_input}: {tuple(future.shape)}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # the model is small
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
