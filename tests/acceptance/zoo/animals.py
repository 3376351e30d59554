"""All apps of the zoo."""

from __future__ import annotations

from tests.acceptance.zoo.node_apps import NODE_APPS
from tests.acceptance.zoo.other_apps import OTHER_APPS
from tests.acceptance.zoo.python_apps import PYTHON_APPS

ANIMALS = (*PYTHON_APPS, *NODE_APPS, *OTHER_APPS)
