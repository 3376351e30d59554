"""Levels of lines as the usual loggers write them."""

from __future__ import annotations

import pytest

from builderd.logs.levels import Level, level_of

LINES = {
    Level.ERROR: (
        "[2026-12-03 08:00:00 +0000] [12] [ERROR] Exception in worker process",
        "ERROR:    Application startup failed. Exiting.",
        "ERROR:root:oops",
        "2026-12-03 08:00:00,123 - shop.cart - ERROR - no such item",
        "2026-12-03 08:00:00,123 CRITICAL shop: out of stock",
        "2026-12-03 08:00:00.123 | ERROR    | shop:buy:12 - no such item",
        "[2026-12-03 08:00:00,123: ERROR/MainProcess] consumer: Cannot connect to redis",
        '{"level":50,"time":1764748800000,"pid":1,"msg":"no"}',
        '{"time": "2026-12-03", "msg": "level", "severity": "CRITICAL"}',
        '{"text": "x", "record": {"level": {"icon": "x", "name": "ERROR", "no": 40}}}',
        'time=2026-12-03T08:00:00Z level=error msg="no"',
        "E, [2026-12-03T08:00:00.123456 #12] ERROR -- : no route",
        "F1203 08:00:00.123456 12 main.go:7] no",
        "[Nest] 12  - 12/03/2026, 8:00:00 AM   ERROR [ExceptionHandler] no",
        "2026-12-03T08:00:00.123Z ERROR 1 --- [main] c.e.App : no",
        "2026-12-03T08:00:00.123Z\terror\tmain.go:7\tno",
        "2026/12/03 08:00:00 [error] 12#12: *1 open() failed",
        "Dec  3 08:00:00 app[12]: ERROR no",
        "Traceback (most recent call last):",
        "ModuleNotFoundError: No module named 'flask'",
        "sqlalchemy.exc.OperationalError: no",
        "Error: Cannot find module 'express'",
        "TypeError [ERR_INVALID_ARG]: no",
        "/usr/bin/python3: No module named flask",
        "npm error code ENOENT",
        "thread 'main' panicked at src/main.rs:7:5:",
        "panic: runtime error",
        "error: no",
        "fail: Microsoft.Hosting[0]",
        "\x1b[31mERROR\x1b[0m:    no",
    ),
    Level.WARNING: (
        "WARNING: This is a development server. Do not use it in a production deployment.",
        "[08:00:00] WARN (12): no",
        "/app/main.py:3: DeprecationWarning: no",
        "(node:12) [DEP0040] DeprecationWarning: no",
        "npm warn deprecated left-pad",
        '{"level":"warn","msg":"no"}',
        '{"level":4,"short_message":"no"}',
        "warning: no",
    ),
    Level.INFO: (
        "[2026-12-03 08:00:00 +0000] [12] [INFO] Starting gunicorn 23.0.0",
        'INFO:     127.0.0.1:1 - "GET /error HTTP/1.1" 500 Internal Server Error',
        "INFO:werkzeug:Press CTRL+C to quit",
        '{"level":30,"msg":"an error: \\"level\\":50"}',
        "I, [2026-12-03T08:00:00.123456 #12]  INFO -- : ERROR is a word",
        "[Nest] 12  - 12/03/2026, 8:00:00 AM     LOG [NestFactory] Starting",
    ),
    Level.DEBUG: ('{"level":20}', "DEBUG:asyncio:Using selector", "dbug: x", "ts=1 lvl=debug"),
    None: (
        "",
        "{}",
        "{not json",
        "There was no ERROR in it",
        "errors: 0",
        "Finished with 0 errors",
        '10.0.0.1 - - [03/Dec/2026 08:00:00] "GET /ERROR HTTP/1.1" 200 -',
        " * Running on http://127.0.0.1:5000",
        "I am here",
        "E is a letter",
    ),
}


@pytest.mark.parametrize(("text", "level"), [(text, level) for level, texts in LINES.items() for text in texts])
def test_level_is_read_from_the_text_of_a_line(text: str, level: Level | None) -> None:
    assert level_of(text) == level


def test_indented_lines_go_on_with_the_line_before() -> None:
    assert level_of('  File "main.py", line 3', Level.ERROR) is Level.ERROR
    assert level_of("Next", Level.ERROR) is None
