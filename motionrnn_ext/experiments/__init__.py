"""`motionrnn ablate` and `motionrnn compare`: tables of trainings that differ in one thing, over several seeds.

    plan     the rows of a table, what is compared with what, presets
    folder   what an experiment's folder holds, and whether it is whole
    run      trains and scores the cells of a table (a row with a seed) that are not finished yet
    checks   finds what is wrong before anything is written
    costs    parameters and multiply-adds of a row's model
    table    mean and spread over seeds, the rule for "no difference shown", Markdown and terminal

A folder of an experiment:

    experiment.json          the settings that all cells share
    cells/ROW_seed_N.json    a finished cell; never run again
    runs/ROW_seed_N/         its training, see `runs`; an interrupted one goes on from its last checkpoint
    results.json             all of the table's numbers
    table.md, figure.png     the table, and a dot per cell
"""

from .plan import PRESETS, Cell, Plan, Preset, Row, ablation, comparison

__all__ = ["PRESETS", "Cell", "Plan", "Preset", "Row", "ablation", "comparison"]
