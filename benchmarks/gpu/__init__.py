"""Build, test and measure the package on the GPU of this machine."""
