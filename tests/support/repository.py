"""The repository's folders, for tests that read its files or start its programs."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"


def path_of_test(name: str) -> Path:
    """Return the path of the test file of this name, whichever room it lies in."""
    (path,) = TESTS.glob(f"*/{name}")
    return path
