"""The engines that are held to the contract."""

from __future__ import annotations

import pytest
from tests.contract.engine.apps import APPS, COMMANDS

from builderd.adapters.fakes.engine import FakeEngine
from builderd.ports.engine import Engine


@pytest.fixture
async def engine() -> Engine:
    fake = FakeEngine()
    for app in APPS:
        fake.behave(app.entrypoint, app.behaviour)
    for command in COMMANDS:
        fake.answer(command.text, command.answer)
    await fake.prepare(lambda line: None)
    return fake
