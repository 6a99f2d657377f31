"""Uses of a trained model: scores on held-out clips, predictions of the user's frames, pictures of its motion.

clips     held-out clips of a run's data set, and the user's own frames
scores    the baseline, predictions and scores of clips, and the motion on the way
evaluate  `motionrnn evaluate` and `motionrnn predict`
motion    `motionrnn visualize`
tables    tables and paths that commands print
pictures  a list of drawn pictures that survives one that fails
"""
