"""Private keys that protect nothing: of a self-signed certificate for localhost, or in a folder of tests. Pure."""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from collections.abc import Mapping

RULE = "GEN-private-key-local"
MESSAGE = "a private key for localhost or for tests: everyone who has the code has it"
TESTS = re.compile(r"(?i)(?:^|/)(?:tests?|__tests__|spec|fixtures|testdata)/")
LOCAL_NAME = re.compile(r"(?i)localhost|127\.0\.0\.1|self[-_]?signed|snakeoil")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]{100,10000})-----END CERTIFICATE-----")


def is_local(path: str, texts: Mapping[str, str]) -> bool:
    """Return True for a key of tests, one named after localhost, or one beside a certificate for localhost alone.

    ``texts`` are those of the bundle's files. A key that stands in code counts as any other.
    """
    if not path.endswith((".pem", ".key")):
        return False
    if TESTS.search(path) or LOCAL_NAME.search(posixpath.basename(path)):
        return True
    folder = posixpath.dirname(path)
    beside = [text for other, text in texts.items() if posixpath.dirname(other) == folder]
    found = [one[1] for text in beside for one in _CERTIFICATE.finditer(text)]
    return bool(found) and all(_names_localhost(one) for one in found)


def _names_localhost(certificate: str) -> bool:
    """Return True if issuer and subject are both localhost, so that it is self-signed."""
    try:
        content = base64.b64decode("".join(certificate.split()), validate=True)
    except (binascii.Error, ValueError):
        return False
    # A common name is the object 2.5.4.3 and then a string of a tag and a length.
    names = re.findall(rb"\x06\x03\x55\x04\x03[\x0c\x13\x16](.)", content, re.DOTALL)
    local = re.findall(rb"\x06\x03\x55\x04\x03[\x0c\x13\x16]\x09localhost", content)
    return len(names) == len(local) == 2
