"""The name that this package was imported by: "motionrnn_ext", or that of a copy, as of the Hugging Face Hub's.

A copy has a name of its own, and so have its ops. Several versions can therefore run in one process.
"""

PACKAGE = __name__.partition(".")[0]
