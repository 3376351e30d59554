"""Guessing SSH tokens must not lock out a valid token from the same address."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import asyncssh
from tests.application import PATIENCE
from tests.unit.ssh.test_gateway import Logged, logged_in

from builderd.ssh import gateway


async def guess(logged: Logged) -> None:
    with suppress(OSError, asyncssh.Error):
        await logged.connect("bdssh_wrong")


async def test_wrong_tokens_do_not_lock_out_a_valid_one() -> None:
    """Eleven locked out the address for ten minutes."""
    async with logged_in() as logged:
        await asyncio.gather(*(guess(logged) for _ in range(11)))
        async with asyncio.timeout(PATIENCE):
            assert not (await logged.connect()).is_closed()


async def test_flood_of_wrong_and_silent_logins_does_not_lock_out_a_valid_token() -> None:
    async with logged_in() as logged:
        silent = [(await asyncio.open_connection("127.0.0.1", logged.port))[1] for _ in range(gateway.MAX_PENDING + 20)]
        guesses = [asyncio.create_task(guess(logged)) for _ in range(40)]
        try:
            await logged.world.until(lambda: any(one.wrong for one in logged.gateway.throttle._pending["127.0.0.1"]))
            for _ in range(3):
                async with asyncio.timeout(PATIENCE):
                    assert not (await logged.connect()).is_closed()
            assert logged.gateway.throttle._total <= gateway.MAX_PENDING
        finally:
            for task in guesses:
                task.cancel()
            await asyncio.gather(*guesses, return_exceptions=True)
            for writer in silent:
                writer.close()
