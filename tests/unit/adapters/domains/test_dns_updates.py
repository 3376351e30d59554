"""Keys of dynamic updates as nsupdate writes them."""

from __future__ import annotations

import pytest

from builderd.adapters.domains import dns_updates
from builderd.adapters.domains.dns_updates import Rfc2136Updates, TsigKey
from builderd.ports.previews import OrderFailed


def test_a_key_is_read_with_and_without_its_algorithm() -> None:
    assert TsigKey.parse("name:c2Vj") == TsigKey("name", "c2Vj", "hmac-sha256")
    assert TsigKey.parse("hmac-sha512:name:c2Vj") == TsigKey("name", "c2Vj", "hmac-sha512")
    for text in ("", "name", "a:b:c:d"):
        with pytest.raises(ValueError, match="name:secret"):
            TsigKey.parse(text)


async def test_a_name_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_updates, "TIMEOUT", 0.05)
    with pytest.raises(OrderFailed, match=r"127\.0\.0\.1 gives no answer"):
        await Rfc2136Updates("127.0.0.1:9", TsigKey("name", "c2Vj")).add_text("_acme-challenge.apps.test", "value")
