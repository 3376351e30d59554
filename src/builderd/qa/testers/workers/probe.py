"""Looks for an OpenAPI document at the usual paths, and tests its operations with schemathesis.

Request: ``{"url", "port", "examples", "seconds"}``; answer: ``{"document": path | null, "operations": n, "tested": n,
"cases": n, "failures": [[title, operation]], "errors": [text], "fault": text}``.
"""

from __future__ import annotations

import http.client
import json
import pathlib
import subprocess
import sys
from typing import Any
from urllib.parse import SplitResult, urlsplit

PATHS = (
    *("/openapi.json", "/swagger.json", "/api/openapi.json", "/v3/api-docs", "/swagger/v1/swagger.json"),
    *("/schema/openapi.json", "/apispec_1.json"),
)
MAX_DOCUMENT = 5_000_000
REPORTS = pathlib.Path("/tmp/reports")  # noqa: S108 -- the jail's own, empty
MAX_LIST = 100


def main() -> None:
    request = json.load(sys.stdin)
    seen: dict[str, Any] = {"document": None, "operations": 0, "tested": 0, "cases": 0, "fault": ""}
    seen |= {"failures": [], "errors": []}
    parts = urlsplit(request["url"])
    seen["document"] = next((path for path in PATHS if describes(path, parts, request["port"])), None)
    if seen["document"] is not None:
        test(seen, parts, request)
    json.dump(seen, sys.stdout)


def describes(path: str, parts: SplitResult, port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        headers = {"Host": parts.netloc, "X-Forwarded-Proto": parts.scheme, "Connection": "close"}
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            return False
        document = json.loads(answer.read(MAX_DOCUMENT))
        return isinstance(document, dict) and ("openapi" in document or "swagger" in document) and "paths" in document
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        return False
    finally:
        connection.close()


def test(seen: dict[str, Any], parts: SplitResult, request: dict[str, Any]) -> None:
    origin = f"http://127.0.0.1:{request['port']}"
    command = [
        *(sys.executable, "-I", "-m", "schemathesis.cli", "run", origin + seen["document"], "--url", origin),
        *("--phases", "examples,coverage,fuzzing", "--checks", "not_a_server_error", "--continue-on-failure"),
        *("--max-examples", str(request["examples"]), "--generation-deterministic", "--no-shrink", "--seed", "1"),
        # No --max-time: with one, it continues until that is over, and what it finds hangs on the machine's speed.
        *("--request-timeout", "2", "--max-redirects", "0", "--no-color"),
        *("--header", f"Host:{parts.netloc}", "--header", f"X-Forwarded-Proto:{parts.scheme}"),
        *("--suppress-health-check", "all", "--warnings", "off", "--report", "json", "--report-dir", str(REPORTS)),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=request["seconds"], check=False
        )
    except subprocess.TimeoutExpired:
        seen["fault"] = "schemathesis did not end in time"
        return
    reports = sorted(REPORTS.glob("*.json")) if REPORTS.is_dir() else []
    report = json.loads(reports[-1].read_text()) if reports else {}
    # Without operations it could not read the document: its own words would be a traceback with the jail's paths.
    if not report.get("operations"):
        seen["fault"] = f"it is no document that can be tried (exit code {done.returncode} of schemathesis)"
        return
    read(seen, report)


def read(seen: dict[str, Any], report: dict[str, Any]) -> None:
    seen["operations"] = report["operations"]["selected"]
    seen["tested"] = report["operations"]["tested"]
    seen["cases"] = report["test_cases"]["generated"]
    seen["failures"] = [
        [one["title"], operation] for one in report["failures"] for operation in one.get("operations", [])
    ][:MAX_LIST]
    seen["errors"] = [str(one.get("title") or one.get("message") or one)[:300] for one in report["errors"]][:MAX_LIST]


main()
