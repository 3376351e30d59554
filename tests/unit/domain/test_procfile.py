"""Procfiles: the web line is the command."""

import pytest

from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.entrypoints import process_commands, web_command, worker_command


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("web: gunicorn app:app", "gunicorn app:app"),
        ("# comment\r\nworker: celery\r\nweb:python3 main.py --port $PORT  \r\n", "python3 main.py --port $PORT"),
        ("web: a\nweb: b", "a"),
        ("worker: celery", None),
        ("web:", None),
        ("web2: x", None),
        ("", None),
        ("\xff", None),
    ],
)
def test_the_web_line_is_the_command(text: str, command: str | None) -> None:
    assert web_command(make_bundle([BundleFile("Procfile", text.encode("latin-1"))])) == command


def test_without_the_file_there_is_none() -> None:
    assert web_command(make_bundle([BundleFile("main.py", b"")])) is None


def test_the_worker_line_is_the_command_of_a_worker() -> None:
    bundle = make_bundle([BundleFile("Procfile", b"web: gunicorn app:app\nworker: celery -A tasks\nworker: other\n")])
    assert worker_command(bundle) == "celery -A tasks"
    assert list(process_commands(bundle)) == ["web", "worker"]
