"""The tables of `motionrnn ablate` and `motionrnn compare`: models that differ in one thing, over several seeds.

plan     the rows of a table, and which rows are compared
presets  the sizes of tables by name
folder   the files of an experiment, and whether they are whole
runner   trains and scores each row with each seed, unless it is finished, and writes the table
checks   finds mistakes before anything is written
costs    parameters and multiply-adds of a row's model
gate     whether every model beats the baselines
record   what is finished as one file of data, and its tables as Markdown
table    mean and spread over seeds, Markdown and terminal
differences   intervals over clips, a test over seeds, the rule for "no difference shown"
demo     the work of `motionrnn demo`

The folder of an experiment:

experiment.json          the settings that all trainings share
cells/ROW_seed_N.json    the results of a finished training, which is never repeated
runs/ROW_seed_N/         the run's folder of a training; if interrupted, it resumes from its last checkpoint
results.json             all numbers of the table
table.md, figure.png     the table, and a figure with a dot per training
"""

from .plan import Plan, Row, Training, ablation, comparison
from .presets import PRESETS, STANDARD, Preset, preset

__all__ = ["PRESETS", "STANDARD", "Plan", "Preset", "Row", "Training", "ablation", "comparison", "preset"]
