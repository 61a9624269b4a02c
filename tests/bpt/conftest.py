"""What the tests of training share."""

import pytest
from colours import write_images


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """24 images to train on, 9 to validate, 12 to test, 3 classes."""
    return write_images(tmp_path_factory.mktemp("colours"))
