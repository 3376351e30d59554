"""Vendored rules: secrets, by those of gitleaks run by RE2, and shapes of malicious packages, by GuardDog's of YARA.

A rule of gitleaks whose tokens have a distinct shape is reported as ``SEC-…``; one that needs a word such as ``adobe``
nearby, and then takes any hex for a secret, as ``GEN-…``.
"""

from __future__ import annotations

import base64
import math
import posixpath
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import re2
import yara

GITLEAKS = Path(__file__).with_name("rules") / "gitleaks" / "gitleaks.toml"
#: How gitleaks' own generator begins a rule that needs a word nearby.
NEEDS_A_WORD = r"(?i)[\w.-]{0,50}?(?:"
#: Keys of a provider's test mode move no money and open no data.
TEST_KEY = re.compile(r"^(?:sk|rk|pk)_test_")
SHOWN = 4

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.max_mem = 64 << 20


class Secret(NamedTuple):
    """``value`` is the secret itself: never told, only used to mask it."""

    rule: str
    line: int
    value: str
    description: str


@dataclass(frozen=True, slots=True)
class Allowlist:
    """Matches that are no secrets. ``every``: all of its conditions must match, not just one."""

    regexes: tuple[re2._Regexp, ...]
    target: str
    stopwords: tuple[str, ...]
    paths: tuple[re2._Regexp, ...]
    every: bool

    def allows(self, path: str, secret: str, match: str, line: str) -> bool:
        text = {"match": match, "line": line}.get(self.target, secret)
        checks = []
        if self.regexes:
            checks.append(any(regex.search(text) for regex in self.regexes))
        if self.stopwords:
            lowered = secret.lower()
            checks.append(any(word in lowered for word in self.stopwords))
        if self.paths:
            checks.append(any(regex.search(path) for regex in self.paths))
        return bool(checks) and (all(checks) if self.every else any(checks))


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    description: str
    regex: re2._Regexp
    path: re2._Regexp | None
    keywords: tuple[str, ...]
    entropy: float
    group: int
    allowlists: tuple[Allowlist, ...]


class SecretRules:
    """The rules, compiled once; a text is first looked through for the words that any of them needs."""

    def __init__(self, file: Path = GITLEAKS) -> None:
        document = tomllib.loads(file.read_text())
        self._rules = [_rule(entry) for entry in document["rules"] if "regex" in entry]
        self._everywhere = _allowlist(document["allowlist"])
        self._words: dict[int, list[Rule]] = {}
        self._set = re2.Set.SearchSet(_OPTIONS)
        numbers: dict[str, int] = {}
        for rule in self._rules:
            for word in rule.keywords:
                if word not in numbers:
                    numbers[word] = self._set.Add(f"(?i){re.escape(word)}")
                self._words.setdefault(numbers[word], []).append(rule)
        self._set.Compile()
        self._always = [rule for rule in self._rules if not rule.keywords]

    def find(self, path: str, text: str) -> Iterator[Secret]:
        """Yield all secrets of a file."""
        if any(regex.search(path) for regex in self._everywhere.paths):
            return
        due = {rule.name: rule for number in self._set.Match(text) or () for rule in self._words[number]}
        for rule in (*due.values(), *self._always):
            if rule.path is None or rule.path.search(path):
                yield from self._find(rule, path, text)

    def _find(self, rule: Rule, path: str, text: str) -> Iterator[Secret]:
        for found in rule.regex.finditer(text):
            group = found.group(rule.group) if rule.group else next(filter(None, found.groups()), None)
            secret = group or found.group()
            start = text.rfind("\n", 0, found.start()) + 1
            end = text.find("\n", found.end())
            line = text[start : end if end >= 0 else len(text)]
            allowed = (self._everywhere, *rule.allowlists)
            if entropy(secret) <= rule.entropy or any(a.allows(path, secret, found.group(), line) for a in allowed):
                continue
            name = f"GEN-{rule.name[4:]}" if TEST_KEY.match(secret) else rule.name
            offset = text.find(secret, found.start())
            yield Secret(name, text.count("\n", 0, max(offset, 0)) + 1, secret, rule.description)


def _rule(entry: Mapping[str, Any]) -> Rule:
    generic = entry["regex"].startswith(NEEDS_A_WORD) or entry["id"] == "generic-api-key"
    return Rule(
        name=f"{'GEN' if generic else 'SEC'}-{entry['id']}",
        description=entry["description"].split(", ")[0].rstrip("."),
        regex=re2.compile(entry["regex"], _OPTIONS),
        path=re2.compile(entry["path"], _OPTIONS) if "path" in entry else None,
        keywords=tuple(word.lower() for word in entry.get("keywords", ())),
        entropy=entry.get("entropy", 0.0),
        group=entry.get("secretGroup", 0),
        allowlists=tuple(_allowlist(one) for one in entry.get("allowlists", ())),
    )


def _allowlist(entry: Mapping[str, Any]) -> Allowlist:
    return Allowlist(
        regexes=tuple(re2.compile(regex, _OPTIONS) for regex in entry.get("regexes", ())),
        target=entry.get("regexTarget", "secret"),
        stopwords=tuple(word.lower() for word in entry.get("stopwords", ())),
        paths=tuple(re2.compile(regex, _OPTIONS) for regex in entry.get("paths", ())),
        every=entry.get("condition") == "AND",
    )


def entropy(text: str) -> float:
    """Shannon's, in bits a character."""
    if not text:
        return 0.0
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def masked(text: str, secrets: Sequence[str]) -> str:
    """The text with each secret cut to its first characters, and never more than a quarter of one."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        for part in secret.split("\n"):
            if len(part) >= 6:
                text = text.replace(part, f"{part[: min(SHOWN, len(part) // 4)]}…")
    return text


LOCAL_KEY = "GEN-private-key-local"
LOCAL_KEY_MESSAGE = "a private key for localhost or for tests: everyone who has the code has it"
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
    for certificate in found:
        try:
            content = base64.b64decode("".join(certificate.split()), validate=True)
        except ValueError:
            return False
        # Issuer and subject, so that it is self-signed. A common name is the object 2.5.4.3 and then a string of a tag
        # and a length.
        names = re.findall(rb"\x06\x03\x55\x04\x03[\x0c\x13\x16](\x09localhost|.)", content, re.DOTALL)
        if names != [b"\x09localhost"] * 2:
            return False
    return bool(found)


GUARDDOG = Path(__file__).with_name("rules") / "guarddog"
#: Rules that match at bytes above 127 alone; they take more time than all others, and most files have no such byte.
BEYOND_ASCII = frozenset({"threat-runtime-obfuscation-unicode"})


class Signature(NamedTuple):
    rule: str
    line: int
    description: str


class Signatures:
    """The rules, compiled once. A rule of low specificity is reported as ``YAL-…``, any other as ``YAR-…``.

    The review's limit of CPU time bounds a search; YARA's own is of wall time, which a busy machine uses up for a
    sound file.
    """

    def __init__(self, folder: Path = GUARDDOG) -> None:
        files = {path.stem: str(path) for path in sorted(folder.glob("*.yar"))}
        self._all = yara.compile(filepaths=files)
        self._for_ascii = yara.compile(filepaths={name: files[name] for name in files.keys() - BEYOND_ASCII})

    def find(self, path: str, content: bytes) -> Iterator[Signature]:
        """Yield one match for each rule that is for this path, at its first position."""
        rules = self._for_ascii if content.isascii() else self._all
        for match in rules.match(data=content):
            patterns = str(match.meta.get("path_include", "*")).split(",")
            if not any(fnmatch(path, one) or fnmatch(f"x/{path}", one) for one in patterns):
                continue
            places = [instance.offset for string in match.strings for instance in string.instances]
            line = content.count(b"\n", 0, min(places)) + 1 if places else 0
            family = "YAL" if match.meta.get("specificity") == "low" else "YAR"
            name = str(match.rule).removeprefix("threat_").replace("_", "-")
            yield Signature(f"{family}-{name}", line, str(match.meta.get("description", "")))
