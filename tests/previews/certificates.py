"""Throw-away certificates, as one PEM file of key and chain."""

from __future__ import annotations

import subprocess
from pathlib import Path


def write_certificate(file: Path, name: str) -> None:
    """Self-signed, for ``*.localhost``; ``name`` is its organisation, by which a test tells one from another."""
    key, certificate = file.with_suffix(".key"), file.with_suffix(".crt")
    request = (
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    )
    names = ("-subj", f"/O={name}/CN=*.localhost", "-addext", "subjectAltName=DNS:*.localhost")
    subprocess.run((*request, *names, "-keyout", str(key), "-out", str(certificate)), check=True, capture_output=True)
    file.write_text(key.read_text() + "\n\n" + certificate.read_text())
