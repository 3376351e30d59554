"""Own patterns, in RE2's syntax: run time proportional to the text's length for any text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import re2

from builderd.domain.sources import Kind

#: Lines of JavaScript this long were written by a program: odd things in them are mostly data. Since an attacker can
#: write such a line too, a rule that blocks elsewhere applies there.
MINIFIED = 1_000
MINIFIED_RULE = "RSK-minified"
#: Strings are first looked through together, so many characters at a time.
PORTION = 64_000
#: A line that is nothing but a comment.
COMMENTS = {
    Kind.JAVASCRIPT: re.compile(r"\s*(?://|\*(?!/)(?:\s|$)|/\*(?:(?!\*/).)*(?:\*/\s*)?$)"),
    Kind.SCRIPT: re.compile(r"\s*(?:#(?!!)|//|\*(?!/)(?:\s|$)|/\*(?:(?!\*/).)*(?:\*/\s*)?$)"),
}

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False


class Pattern(NamedTuple):
    """``kinds`` are those of the files; None: any code, and the strings of Python code."""

    rule: str
    kinds: frozenset[Kind] | None
    regex: re2._Regexp


def _pattern(rule: str, regex: str, *kinds: Kind) -> Pattern:
    return Pattern(rule, frozenset(kinds) or None, re2.compile(regex, _OPTIONS))


_SCRIPTS = (Kind.JAVASCRIPT, Kind.SCRIPT)
_FETCH = r"\b(?:curl|wget|Invoke-WebRequest|iwr)\b"
_SHELL = r"(?:sudo\s+(?:-\w+\s+)*)?(?:/\S*/)?(?:ba|z|da|k)?sh\b"
_DECODE = r"(?:atob|unescape|Buffer\s*\.\s*from)"
#: The function, and no method of that name but the global object's.
_EVAL = r"(?:(?:^|[^.\w$])|\b(?:window|globalThis|global|self|this)\s*\.\s*)eval"
_REQUEST_JS = r"\b(?:req|request|ctx\.request|ctx)\s*\.\s*(?:query|body|params|headers|cookies)\b"
_GET_JS = r"(?:fetch|axios(?:\s*\.\s*\w+)?|got|https?(?:['\"`]\s*\))?\s*\.\s*get|request)\s*\("

PATTERNS = (
    # Shapes of reverse shells in the common interpreters.
    _pattern("MAL-reverse-shell", r"(?i)\b(?:ba|z|k)?sh\s+-i[^\n]{0,20}[<>&\d ]+/dev/(?:tcp|udp)/"),
    _pattern("MAL-reverse-shell", r"(?:exec\s+\d+\s*<>|\d*[<>]&?\s*)/dev/(?:tcp|udp)/\S+", Kind.SCRIPT),
    _pattern("MAL-reverse-shell", r"/dev/tcp/(?:\d{1,3}\.){3}\d{1,3}/\d+"),
    _pattern(
        "MAL-reverse-shell",
        r"\b(?:nc|ncat|netcat)(?:\.\w+)?\b[^\n|;]{0,80}\s(?:-\w*[ec]|--exec|--sh-exec)\s*['\"]?(?:/bin/|cmd|powershell|(?:ba)?sh\b)",
    ),
    _pattern("MAL-reverse-shell", r"\bmkfifo\b[^\n]{0,120}\b(?:nc|ncat|netcat|telnet|openssl)\b"),
    _pattern("MAL-reverse-shell", r"\b(?:nc|ncat|netcat|telnet)\s+\S+\s+\d+\s*\|\s*/?(?:\S*/)?(?:ba|z)?sh\b"),
    _pattern("MAL-reverse-shell", r"(?i)\bsocat\b[^\n]{0,160}\bexec:"),
    _pattern(
        "MAL-reverse-shell",
        r"\bperl\b[^\n]{0,40}-e[^\n]{0,40}\b(?:use\s+)?(?:IO::)?Socket\b[^\n]{0,400}\b(?:exec|system|STDIN)\b",
    ),
    _pattern("MAL-reverse-shell", r"\bruby\b[^\n]{0,40}-rsocket[^\n]{0,300}(?:exec|spawn|IO\.popen|\$stdin)"),
    _pattern("MAL-reverse-shell", r"TCPSocket\.(?:new|open)\([^\n]{0,200}(?:exec|spawn|popen)", Kind.SCRIPT),
    _pattern("MAL-reverse-shell", r"\bfsockopen\s*\([^\n]{0,200}(?:exec|shell_exec|passthru|proc_open|popen|system|`)"),
    _pattern("MAL-reverse-shell", r"\bpython[\d.]*\b[^\n]{0,20}-c[^\n]{0,60}socket[^\n]{0,400}(?:dup2|pty|subprocess)"),
    _pattern("MAL-reverse-shell", r"\bzmodload\s+zsh/net/tcp\b[^\n]{0,160}\bztcp\b"),
    _pattern("MAL-reverse-shell", r"\bcurl\b[^\n]{0,80}\btelnet://[^\n]{0,160}\|\s*(?:\S*/)?(?:ba|z|da)?sh\b"),
    _pattern("MAL-reverse-shell", r"\b(?:awk|gawk)\b[^\n]{0,40}/inet/tcp/"),
    _pattern(
        "MAL-reverse-shell",
        r"(?i)New-Object\s+(?:System\.)?Net\.Sockets\.TCPClient[\s\S]{0,600}(?:iex|Invoke-Expression)",
    ),
    _pattern("MAL-reverse-shell", r"\blua[\d.]*\b[^\n]{0,20}-e[^\n]{0,80}socket[^\n]{0,200}(?:execute|popen)"),
    _pattern(
        "MAL-reverse-shell",
        r"(?:spawn|exec|execFile)(?:Sync)?\s*\(\s*['\"`](?:/bin/)?(?:ba|z)?sh['\"`][\s\S]{0,600}?(?:\.connect\s*\(|net\.Socket)[\s\S]{0,400}?\.pipe\s*\(",
        *_SCRIPTS,
    ),
    _pattern(
        "MAL-reverse-shell",
        r"(?:net['\"`]?\)?\s*\.(?:connect|createConnection|createServer)|new\s+net\.Socket|\.connect\s*\()[\s\S]{0,600}?(?:spawn|exec|execFile)\s*\(\s*['\"`](?:/bin/)?(?:ba|z)?sh['\"`]",
        *_SCRIPTS,
    ),
    _pattern(
        "MAL-remote-commands",
        r"\.on\s*\(\s*['\"`](?:data|message)['\"`][^;]{0,160}?(?:[^.\w]|\bcp\.|child_process['\"`]?\)?\s*\.)exec(?:Sync)?\s*\(\s*(?:String\s*\(\s*)?\w+(?:\s*\.\s*\w+\([^()]*\))*\s*[,)]",
        *_SCRIPTS,
    ),
    _pattern(
        "MAL-miner",
        r"(?i)\bstratum\+(?:tcp|ssl|tls)://|\bxmrig\b|\bcoinhive\b|\b(?:supportxmr|minexmr|moneroocean|nanopool)\.(?:com|stream|org)\b",
    ),
    _pattern("MAL-fork-bomb", r":\(\)\s*\{\s*:\s*\|\s*:\s*&\s*\}\s*;\s*:"),
    _pattern("MAL-fork-bomb", r"\bwhile\s*\(\s*(?:true|1)\s*\)\s*\{?\s*(?:\w+\.)?fork\s*\(", *_SCRIPTS),
    _pattern(
        "MAL-destroys",
        r"\brm\s+(?:-{1,2}[\w-]+\s+)*-\w*(?:r\w*f|f\w*r)\w*\s+(?:-{1,2}[\w-]+\s+)*/\*?(?:[\s'\"`;|&)]|$)",
    ),
    _pattern("MAL-destroys", r"\brm\b[^\n]{0,60}--no-preserve-root"),
    _pattern("MAL-destroys", r"\b(?:rmSync|rmdirSync|rimraf(?:\.sync)?|rm)\s*\(\s*['\"`]/['\"`]", *_SCRIPTS),
    # Hidden or fetched code that is run, in JavaScript.
    _pattern(
        "MAL-decoded-executed",
        rf"(?:{_EVAL}|\bnew\s+Function|\bFunction|\bvm\s*\.\s*runIn\w+|\bexec(?:Sync)?)\s*\(\s*(?:['\"`][\w\s,]{{0,80}}['\"`]\s*,\s*)?(?:\w+\s*\(\s*)?{_DECODE}\s*\(",
        *_SCRIPTS,
    ),
    _pattern(
        "MAL-decoded-executed",
        rf"{_EVAL}\s*\(\s*(?:function\b|String\.fromCharCode|decodeURIComponent\s*\(\s*{_DECODE}|[^;\n]{{0,160}}\bString\.fromC(?:harCode|odePoint)\b)",
        Kind.JAVASCRIPT,
    ),
    _pattern(
        "MAL-decoded-executed",
        r"\bcreateDecipher(?:iv)?\s*\([\s\S]{0,800}?(?:\._compile\s*\(|\beval\s*\(|\bnew\s+Function\b|\brunIn\w+\s*\()",
        Kind.JAVASCRIPT,
    ),
    _pattern(
        "MAL-decoded-executed",
        r"\becho\s+['\"]?[A-Za-z0-9+/=]{16,}['\"]?\s*\|\s*base64\s+(?:-d|-D|--decode)\s*\|\s*(?:ba|z)?sh\b",
    ),
    _pattern(
        "MAL-decoded-executed", r"\beval\s*\(\s*(?:gzinflate|gzuncompress|base64_decode|str_rot13)\s*\(", Kind.SCRIPT
    ),
    _pattern(
        "MAL-decoded-executed",
        r"(?i)\bpowershell(?:\.exe)?\b[^\n]{0,80}\s-e(?:nc|ncodedcommand)?\s+[A-Za-z0-9+/=]{20,}",
    ),
    _pattern("MAL-fetched-executed", rf"{_EVAL}\s*\(\s*\(?\s*(?:await\s+)?\(?\s*(?:await\s+)?{_GET_JS}", *_SCRIPTS),
    _pattern(
        "MAL-fetched-executed",
        rf"{_GET_JS}[^;]{{0,200}}\.then\s*\([^;]{{0,120}}\b(?:eval|new\s+Function|runIn\w+)\b",
        *_SCRIPTS,
    ),
    _pattern(
        "MAL-fetched-executed",
        rf"{_GET_JS}[\s\S]{{0,300}}?\.on\s*\(\s*['\"`](?:data|end)['\"`][^;]{{0,160}}?\b(?:eval|new\s+Function)\s*\(",
        *_SCRIPTS,
    ),
    _pattern(
        "MAL-fetched-executed", r"(?i)\b(?:iex|Invoke-Expression)\b[^\n]{0,60}(?:DownloadString|Invoke-WebRequest|iwr)"
    ),
    _pattern(
        "MAL-fetched-executed",
        r"(?i)\b(?:Invoke-WebRequest|iwr|Start-BitsTransfer)\b[^\n]{0,300}[;&|]\s*(?:Start-Process|start|&)\s",
    ),
    # Of other objects it is JavaScript's ``RegExp.exec``.
    _pattern(
        "MAL-fetched-executed",
        r"(?:(?:^|[^.\w$])|\b(?:builtins|cp|child_process)\s*\.\s*)exec\s*\(\s*\w+(?:\.\w+)*\s*\(\s*['\"]https?://",
    ),
    _pattern(
        "MAL-environment-sent",
        rf"(?:{_GET_JS}|\.(?:write|send|end|post)\s*\()[^;]{{0,300}}?(?:JSON\s*\.\s*stringify\s*\(\s*(?:\{{\s*\.\.\.\s*)?process\s*\.\s*env\s*[,)}}]|\bprocess\s*\.\s*env\s*[,)}}])",
        *_SCRIPTS,
    ),
    _pattern(
        "MAL-environment-sent",
        rf"\b(?:env|printenv|set)\b\s*(?:\|[^\n|]{{0,60}})*\|\s*{_FETCH}[^\n]{{0,200}}(?:-d|--data\S*|-F|-T|--post-\S+)\s*@?-",
        Kind.SCRIPT,
    ),
    _pattern(
        "MAL-environment-sent", rf"{_FETCH}[^\n]{{0,200}}(?:-d|--data\S*)\s*['\"]?(?:\$\(|`)\s*(?:env|printenv)\b"
    ),
    # What only its owner can tell to be right.
    _pattern("RSK-curl-shell", rf"{_FETCH}[^\n|;&]{{0,300}}\|\s*{_SHELL}"),
    _pattern("RSK-curl-shell", rf"{_SHELL}\s+(?:-c\s+)?['\"]?(?:\$\(|<\(|`)\s*{_FETCH}"),
    _pattern("RSK-docker-socket", r"\bdocker\.sock\b"),
    _pattern(
        "RSK-metadata",
        r"\b169\.254\.169\.254\b|\bmetadata\.google\.internal\b|\bfd00:ec2::254\b|\b100\.100\.100\.200\b",
    ),
    _pattern(
        "RSK-request-evaluated",
        rf"(?:{_EVAL}|\bnew\s+Function|\bvm\s*\.\s*runIn\w+)\s*\([^;\n]{{0,120}}{_REQUEST_JS}",
        *_SCRIPTS,
    ),
    _pattern("RSK-request-in-shell", rf"\bexec(?:Sync)?\s*\([^;\n]{{0,160}}{_REQUEST_JS}", *_SCRIPTS),
)

#: U+202A to U+202E and U+2066 to U+2069, which reorder what is shown (CVE-2021-42574).
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")

FETCHES = re2.compile(rf"(?i){_FETCH}|\bfetch\s*\(|https?\s*\.\s*(?:get|request)\b|\baxios\b|\bgot\b", _OPTIONS)
RUNS = re2.compile(
    r"(?i)\bexec(?:Sync|File|FileSync)?\s*\(|\bspawn(?:Sync)?\s*\(|\beval\s*\(|\bnew\s+Function\b|chmod", _OPTIONS
)
#: A hook's command that fetches and continues to run something, or hides what it runs.
HOOK = re2.compile(
    rf"(?i){_FETCH}[^\n]*(?:\||&&|;|>)|\bnode\s+(?:-e|--eval|-p)\b[^\n]*(?:https?|eval|child_process|Buffer)|base64\s+(?:-d|--decode)[^\n]*\||/dev/tcp/",
    _OPTIONS,
)


class Match(NamedTuple):
    rule: str
    line: int


def matches(kind: Kind, text: str) -> Iterator[Match]:
    """Yield the matches of all patterns in a text, except in comments."""
    lines = text.split("\n")
    for pattern in PATTERNS:
        if pattern.kinds is not None and kind not in pattern.kinds:
            continue
        for found in pattern.regex.finditer(text):
            # RE2 cannot look behind, so the match may begin with a line break.
            blanks = len(found.group()) - len(found.group().lstrip())
            line = text.count("\n", 0, found.start() + blanks) + 1
            rule: str | None = pattern.rule
            if kind is Kind.JAVASCRIPT and len(lines[line - 1]) > MINIFIED:
                rule = MINIFIED_RULE if pattern.rule.startswith("MAL-") else None
            if rule and not COMMENTS[kind].match(lines[line - 1]):
                yield Match(rule, line)


def in_strings(strings: Iterable[tuple[int, str]]) -> Iterator[Match]:
    """Yield the matches in strings of Python code, as (line, text) with escapes resolved."""
    for portion in _portions(strings):
        # What a pattern finds in one of them it finds in all of them together: their ends are no part of a word.
        together = "\n".join(text for _, text in portion)
        for pattern in PATTERNS:
            if pattern.kinds is None and pattern.regex.search(together):
                yield from (Match(pattern.rule, line) for line, text in portion if pattern.regex.search(text))


def _portions(strings: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    portion: list[tuple[int, str]] = []
    size = 0
    for line, text in strings:
        if len(text) < 8:
            continue
        # Half of a surrogate pair is no text to RE2, and common in Python's patterns.
        portion.append((line, text.encode(errors="replace").decode()))
        size += len(text)
        if size > PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def reordered(text: str) -> Iterator[int]:
    """Yield the lines with bidirectional control characters, except in minified code, where they are data."""
    if not BIDI.search(text):
        return
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) <= MINIFIED and BIDI.search(line):
            yield number
