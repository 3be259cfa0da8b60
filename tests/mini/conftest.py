import pytest

from evomoe.mini.sampling import Handwriting


@pytest.fixture(scope="session")
def handwriting() -> Handwriting:
    """scikit-learn's handwritten digits, as the mini world uses them."""
    return Handwriting.load()
