"""The client of earlier releases is still there, and says by what to replace it."""

import pytest

import builderd.client


def test_legacy_names_are_importable_with_a_warning() -> None:
    for name in builderd.client.__all__:
        with pytest.warns(DeprecationWarning, match=r"use builderd\.Builderd"):
            assert getattr(builderd.client, name)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError):
        _ = builderd.client.Other
