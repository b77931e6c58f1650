"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import gqa_lab

MODULES = sorted(m.name for m in pkgutil.walk_packages(gqa_lab.__path__, "gqa_lab."))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name):
    import torch

    if name == "gqa_lab.triton_decode":
        pytest.importorskip("triton", reason="triton has no build for this system")
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch}, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
