"""The built-in images, assembled once."""

import pytest

from dynftrace_emu.kernel.mini_kernel import VARIANTS, mini_kernel


@pytest.fixture(scope="session")
def images():
    """The mini-kernel by variant."""
    return {variant: mini_kernel(variant) for variant in VARIANTS}


@pytest.fixture(scope="session")
def dynamic(images):
    return images["dynamic"]
