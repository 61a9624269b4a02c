"""What the tests of training share."""

import multiprocessing

import pytest
from colours import write_images


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """24 images to train on, 9 to validate, 12 to test, 3 classes."""
    return write_images(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def forkserver():
    """Its processes are forked from one that has imported `bpt` and done nothing else.

    A process that is spawned takes five seconds to import it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bpt"])
    return context
