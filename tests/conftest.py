"""Shapes in every signature of the package are checked while the tests run."""

import os

import pytest
import torch
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not torch.cuda.is_available():  # here, because triton looks once, when it is first imported by anything
    os.environ.setdefault("TRITON_INTERPRET", "1")
install_import_hook("gqa_lab", "beartype.beartype")


@pytest.fixture
def shapes_unchecked():
    """Switches the shape checks off, so that a wrong call meets the package's own error."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keeps the tests of a module that makes something for all of them in one process, where it is made once."""
    for item in items:
        fixtures = (
            item.session._fixturemanager.getfixturedefs(name, item) for name in getattr(item, "fixturenames", ())
        )
        if any(defs and defs[-1].scope == "module" for defs in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
