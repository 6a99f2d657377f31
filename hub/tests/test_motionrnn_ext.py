"""Does the kernel, loaded as its users load it, compute what its reference computes, forward and backward?"""

import kernels
import pytest
import torch

motionrnn = kernels.get_kernel("@REPO_ID@", version=int("@VERSION@"), trust_remote_code=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def step(backend):
    torch.manual_seed(0)
    gru = motionrnn.MotionGRU(16).to(DEVICE)
    hidden = torch.randn(2, 16, 12, 10, device=DEVICE, requires_grad=True)
    with motionrnn.backend(backend):
        first, state = gru(hidden)
        second, _ = gru(first, state)
        second.square().sum().backward()
    return second, hidden.grad


@pytest.mark.kernels_ci
def test_a_rollout_is_that_of_the_reference():
    for fast, wanted in zip(step("auto"), step("reference")):
        torch.testing.assert_close(fast, wanted, atol=1e-4, rtol=1e-4)
