"""A private key that protects nothing warns; any other blocks."""

from __future__ import annotations

import pytest

from builderd.adapters.scanners.tripwire.secret_rules import is_local

#: Self-signed certificates, which are public; their keys were thrown away.
LOCAL = (
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBfDCCASOgAwIBAgIUMUqfGoc6XpjW3SL7ppsuFvQnjNIwCgYIKoZIzj0EAwIw\n"
    "FDESMBAGA1UEAwwJbG9jYWxob3N0MB4XDTI2MTEyODAwMDYwMloXDTI2MTIyODAw\n"
    "MDYwMlowFDESMBAGA1UEAwwJbG9jYWxob3N0MFkwEwYHKoZIzj0CAQYIKoZIzj0D\n"
    "AQcDQgAE4HGljC1IuZs8bz4uvRy1BxeN1zMRG75UoDih1b5PaNWKOBf0wHAz1Naf\n"
    "tghue/oEqwAXElrhVfMGNJentcWne6NTMFEwHQYDVR0OBBYEFCO1791Tuzr/2P2t\n"
    "hcurl7y59zWEMB8GA1UdIwQYMBaAFCO1791Tuzr/2P2thcurl7y59zWEMA8GA1Ud\n"
    "EwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIgFX1Yw1jzYlt7Oqs0AfxE9PPV\n"
    "XuH+/r7kK4caxXpjvdgCIBzvLPswKhhd2VR4lLIt6M99mg3U2UWuOIl5VKOk2/UE\n"
    "-----END CERTIFICATE-----\n"
)
OTHER = (
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBgjCCASegAwIBAgIUCSts3zcxzBsZJZyggDmQXas+/T8wCgYIKoZIzj0EAwIw\n"
    "FjEUMBIGA1UEAwwLZXhhbXBsZS5jb20wHhcNMjYxMTI4MDAwNjAyWhcNMjYxMjI4\n"
    "MDAwNjAyWjAWMRQwEgYDVQQDDAtleGFtcGxlLmNvbTBZMBMGByqGSM49AgEGCCqG\n"
    "SM49AwEHA0IABImJeUu7Jy2/8CyH/y8iKP1ukJVF6+5KwMpCWgZ+f3iXWWrH6IC3\n"
    "3OwBjvCPIuQn4eUbBL+mS1n8W/5dXa+WKbOjUzBRMB0GA1UdDgQWBBTcPOMr6NP2\n"
    "TjVKkRDxv6PQH8U8tTAfBgNVHSMEGDAWgBTcPOMr6NP2TjVKkRDxv6PQH8U8tTAP\n"
    "BgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQDVxyCmgTU+BWwU7Ol2\n"
    "ArZhcHcdbpvmEF/pBmN3bm0HrwIhAMFFrlQUFT/RO3abO9S2XN8gos22tSWL44TI\n"
    "W9Iq39J7\n"
    "-----END CERTIFICATE-----\n"
)


@pytest.mark.parametrize(
    ("path", "texts", "local"),
    [
        ("key.pem", {"cert.pem": LOCAL}, True),
        ("tls/key.pem", {"tls/cert.pem": LOCAL}, True),
        ("key.pem", {"cert.pem": OTHER}, False),
        ("key.pem", {"cert.pem": LOCAL, "other.pem": OTHER}, False),
        ("key.pem", {"cert.pem": "-----BEGIN CERTIFICATE-----" + "A" * 200 + "-----END CERTIFICATE-----"}, False),
        ("key.pem", {"other/cert.pem": LOCAL}, False),
        ("key.pem", {}, False),
        ("certs/localhost.key", {}, True),
        ("tests/fixtures/server.pem", {}, True),
        ("tests/settings.py", {}, False),
        ("app.py", {"cert.pem": LOCAL}, False),
    ],
)
def test_key_is_local(path: str, texts: dict[str, str], local: bool) -> None:
    assert is_local(path, texts) is local
