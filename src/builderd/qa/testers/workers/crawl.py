"""Requests ``/`` and the pages that it links to, within limits. Reads its request as JSON and prints the result.

Request: ``{"url", "port", "pages", "seconds"}``; answer: ``{"pages": [[path, status, fault]], "elsewhere": n,
"robots": status | null, "left_out": n}``.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from contextlib import suppress
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, urldefrag, urljoin, urlsplit

MAX_BODY = 2_000_000
REQUEST_SECONDS = 2.0
MAX_REDIRECTS = 4
LINKS = {"a": "href", "area": "href", "link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
#: Characters that a request line may contain; all others are percent-encoded.
PLAIN = "".join(chr(code) for code in range(ord("!"), ord("~") + 1))
#: ``rel`` values of a ``link`` that fetch nothing.
HINTS = {"preconnect", "dns-prefetch", "canonical", "alternate"}


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.base: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "base" and given.get("href") and self.base is None:
            self.base = given["href"]
        if tag == "link" and HINTS & set((given.get("rel") or "").lower().split()):
            return
        target = given.get(LINKS.get(tag, ""))
        if target:
            self.found.append(target.strip())


class Crawl:
    def __init__(self, request: dict[str, Any]) -> None:
        self.url: str = request["url"]
        self.netloc = urlsplit(self.url).netloc
        self.scheme = urlsplit(self.url).scheme
        self.port: int = request["port"]
        self.limit: int = request["pages"]
        self.end: float = time.monotonic() + request["seconds"]
        self.pages: list[list[Any]] = []
        self.elsewhere: set[str] = set()

    def get(self, path: str) -> tuple[int, str, str, bytes]:
        """Return (status, location, content type, body)."""
        seconds = max(min(REQUEST_SECONDS, self.end - time.monotonic()), 0.05)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
            for name, value in (
                ("Host", self.netloc),
                ("X-Forwarded-Host", self.netloc),
                ("X-Forwarded-Proto", self.scheme),
                ("User-Agent", "builderd-qa"),
                ("Accept", "text/html,*/*;q=0.8"),
                ("Connection", "close"),
            ):
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            kind = answer.headers.get_content_type()
            body = b""
            while kind == "text/html" and len(body) < MAX_BODY and time.monotonic() < self.end:
                chunk = answer.read1(65536)
                if not chunk:
                    break
                body += chunk
            return answer.status, answer.headers.get("Location", ""), kind, body
        finally:
            connection.close()

    def page(self, path: str) -> list[str]:
        """Request a page, follow redirects within the app, and return its links."""
        asked, fault = path, ""
        status: int | None = None
        kind, body = "", b""
        try:
            for _ in range(MAX_REDIRECTS):
                status, location, kind, body = self.get(asked)
                if status not in (301, 302, 303, 307, 308) or not location:
                    break
                onward = self.inside(urljoin(urljoin(self.url, asked), location))
                if onward is None:
                    break
                asked = onward
        except TimeoutError:
            status, fault = None, "no answer in time"
        except (OSError, http.client.HTTPException, ValueError) as error:
            status, fault = None, f"{type(error).__name__}: {error}"[:200]
        self.pages.append([path, status, fault])
        return self.links(asked, body) if kind == "text/html" and status == 200 else []

    def links(self, path: str, body: bytes) -> list[str]:
        parser = Links()
        with suppress(AssertionError, ValueError, RecursionError):
            parser.feed(body.decode(errors="replace"))
        base = urljoin(urljoin(self.url, path), parser.base or "")
        found: list[str] = []
        for link in parser.found:
            try:
                inside = self.inside(urljoin(base, link))
            except ValueError:
                continue
            if inside is not None and inside not in found:
                found.append(inside)
        return found

    def inside(self, url: str) -> str | None:
        """Return the path to request, or None if the URL leads to another host."""
        parts = urlsplit(urldefrag(url).url)
        if parts.scheme not in ("http", "https"):
            return None
        if parts.netloc != self.netloc:
            self.elsewhere.add(parts.netloc)
            return None
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return quote(path, safe=PLAIN)

    def run(self) -> dict[str, Any]:
        waiting = [link for link in self.page("/") if link != "/"]
        left_out = 0
        for path in waiting:
            if len(self.pages) >= self.limit or time.monotonic() >= self.end:
                left_out += 1
                continue
            self.page(path)
        return {"pages": self.pages, "elsewhere": len(self.elsewhere), "robots": self.robots(), "left_out": left_out}

    def robots(self) -> int | None:
        try:
            return self.get("/robots.txt")[0]
        except (OSError, http.client.HTTPException, ValueError):
            return None


json.dump(Crawl(json.load(sys.stdin)).run(), sys.stdout)
