"""Review policy: limits, the severity of each rule, and files with reduced severity. Reports contain its hash."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import translate
from functools import cached_property
from typing import Any

from builderd.domain.errors import ValidationFailed
from builderd.domain.reviews import ADVICE, BLIND, SANITY, Severity

OFF = "off"
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class ReviewLimits:
    """Limits of the review of one version; sizes in bytes. Exceeding one of the first three holds, any other blocks.

    ``cpu_seconds`` and ``wall_seconds`` are those of a small bundle; ``for_size`` has those of a larger one.
    """

    files: int = 2_000
    file_bytes: int = 1_000_000
    total_bytes: int = 20_000_000
    wall_seconds: float = 60
    cpu_seconds: int = 10
    memory_bytes: int = 1_000_000_000

    def for_size(self, read_bytes: int) -> ReviewLimits:
        """Return the limits of a review that reads so many bytes: a tenth more time for each whole MB.

        What the limits of size allow can so be read within those of time: 20 MB within three times that of a small
        bundle. Bundles of less than 1 MB have the same limits, so that a scanner can be prepared for them.
        """
        factor = 1 + read_bytes // MB / 10
        return replace(self, cpu_seconds=math.ceil(self.cpu_seconds * factor), wall_seconds=self.wall_seconds * factor)


@dataclass(frozen=True)
class Policy:
    """Review policy.

    ``rules`` map patterns of rule names to a severity, None leaves the rule out; the last that matches counts.

    ``demoted`` are patterns of paths (``*`` also goes across ``/``) whose findings only warn, unless the entrypoint
    or a hook reaches the file.
    """

    limits: ReviewLimits
    rules: tuple[tuple[str, Severity | None], ...]
    demoted: tuple[str, ...]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the policy, 64 hex characters."""
        rules = [(pattern, severity and severity.value) for pattern, severity in self.rules]
        text = json.dumps({"limits": asdict(self.limits), "rules": rules, "demoted": self.demoted}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def severity(self, rule: str) -> Severity | None:
        """Return the severity of a rule; None: off. A rule that no pattern matches warns.

        No policy can lower the ``SAN-`` rules, or let the language model's rules do more than hold.
        """
        if rule not in self._weights:
            found = [severity for pattern, severity in self._patterns if pattern.match(rule)]
            self._weights[rule] = _within_bounds(rule, found[-1] if found else Severity.WARN)
        return self._weights[rule]

    def is_demoted(self, path: str) -> bool:
        """Return True for a file with reduced severity: a test, a document or the like."""
        return any(pattern.match(path) for pattern in self._places)

    @cached_property
    def _weights(self) -> dict[str, Severity | None]:
        return {}

    @cached_property
    def _patterns(self) -> tuple[tuple[re.Pattern[str], Severity | None], ...]:
        return tuple((re.compile(translate(pattern)), severity) for pattern, severity in self.rules)

    @cached_property
    def _places(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(translate(pattern), re.IGNORECASE) for pattern in self.demoted)


def _within_bounds(rule: str, severity: Severity | None) -> Severity | None:
    if rule.startswith(SANITY):
        return Severity.BLOCK
    if rule.startswith(ADVICE) and (severity is Severity.BLOCK or rule in BLIND):
        return Severity.HOLD
    return severity


def make_policy(document: Any) -> Policy:
    """Make the policy of a parsed file. Raises ``ValidationFailed`` with every error."""
    if not isinstance(document, Mapping):
        raise ValidationFailed({"review policy": ["must be a mapping with limits, rules and demoted"]})
    errors = dict(_errors(document))
    if errors:
        raise ValidationFailed({f"review policy: {where}": [why] for where, why in errors.items()})
    weights: dict[Any, Severity | None] = {OFF: None, False: None, **{s.value: s for s in Severity}}
    rules = tuple((str(name), weights[word]) for name, word in document.get("rules", {}).items())
    return Policy(ReviewLimits(**document.get("limits", {})), rules, tuple(document.get("demoted", ())))


def _errors(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    known = {"limits": Mapping, "rules": Mapping, "demoted": list}
    for name, value in document.items():
        if name not in known:
            yield str(name), f"is not known here: {', '.join(known)} are"
        elif not isinstance(value, known[name]):
            yield name, "must be a list" if known[name] is list else "must be a mapping"
    if isinstance(limits := document.get("limits"), Mapping):
        yield from _limit_errors(limits)
    if isinstance(rules := document.get("rules"), Mapping):
        yield from _rule_errors(rules)
    if isinstance(places := document.get("demoted"), list) and not all(isinstance(one, str) for one in places):
        yield "demoted", "must be a list of patterns of paths"


def _limit_errors(limits: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = {field.name for field in fields(ReviewLimits)}
    for name, value in limits.items():
        if name not in names:
            yield f"limits.{name}", f"is not known here: {', '.join(sorted(names))} are"
        elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            yield f"limits.{name}", "must be a number greater than 0"


def _rule_errors(rules: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    # YAML reads an unquoted off as false.
    words = (*(severity.value for severity in Severity), OFF, False)
    for name, word in rules.items():
        if word not in words:
            yield f"rules.{name}", "must be block, hold, warn or off"
        elif str(name).startswith(SANITY) and word != Severity.BLOCK.value:
            yield f"rules.{name}", "must be block: code that cannot be checked must not run"
        elif str(name).startswith(ADVICE) and word == Severity.BLOCK.value:
            yield f"rules.{name}", "must be hold, warn or off: a language model may do no more than hold"
