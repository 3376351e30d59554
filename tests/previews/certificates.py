"""Throw-away certificates, as one PEM file of key and chain."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def write_certificate(file: Path, name: str, host: str = "DNS:*.localhost") -> None:
    """Self-signed, for ``*.localhost`` or ``host``; a test tells one from another by ``name``, its organisation."""
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
    names = ("-subj", f"/O={name}/CN=*.localhost", "-addext", f"subjectAltName={host}")
    subprocess.run((*request, *names, "-keyout", str(key), "-out", str(certificate)), check=True, capture_output=True)
    file.write_text(key.read_text() + "\n\n" + certificate.read_text())


def make_pem(host: str) -> str:
    """Self-signed for one host, as a custom domain has it: the chain first, the key last."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host[:60])]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=89))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private = key.private_bytes(encoding, form, serialization.NoEncryption())
    return (made.public_bytes(encoding) + private).decode()
