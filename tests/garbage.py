"""Python's garbage collector looks less often, and not at the tests themselves.

10,000 collected tests are half a million objects that live to the end: while they are collected, and in each full
collection after that, the collector visited all of them.
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

#: New objects between two collections of the youngest; 2,000 by default.
NEW_OBJECTS = 20_000


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])
