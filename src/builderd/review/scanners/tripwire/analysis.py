"""One review: every scanner on every file that concerns it, in the confined child."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from builderd.code.sources import CODE, Kind, References
from builderd.review.scanners.tripwire import classes, javascript, patterns, python_code, secret_rules
from builderd.review.scanners.tripwire.commands import Commands, judge_script
from builderd.review.scanners.tripwire.python_code import flow_rules
from builderd.review.scanners.tripwire.review import CATALOGUE, QUOTED, Review, Source, reported
from builderd.review.scanners.tripwire.secret_rules import Secret, SecretRules, Signatures

T = TypeVar("T")

FOLDER = Path("/work")
FOR_SECRETS = "Take it out, revoke it where it was issued, and hand it to the app as a credential"
FOR_WARNINGS = "Look at it: it is harmless in many places"
HOOKS = ("preinstall", "install", "postinstall", "prepare", "prepublish", "preprepare", "postprepare")
#: ``S101`` (assert) and ``S311`` (random) say nothing of an app, and ``S104`` (all interfaces) is what it is to do.
ARGUMENTS = (
    *("check", "--isolated", "--ignore-noqa", "--no-respect-gitignore", "--no-cache", "--quiet", "--exit-zero"),
    *("--select", "S", "--ignore", "S101,S104,S311", "--output-format", "json", "--target-version", "py313"),
)
#: Rules whose message quotes what may be a password.
PASSWORDS = frozenset({"S105", "S106", "S107"})
#: Bytes of scripts whose flow of data is followed: minified code takes more time for a byte than a person's.
MAX_SCRIPTS = 150_000
#: A cluster's own API, and any other address that is written out.
OWN_CLUSTER = re.compile(r"KUBERNETES_SERVICE_HOST|kubernetes\.default")
OTHER_HOST = re.compile(r"\bhttps?://(?![{$]|kubernetes\.default|localhost|127\.)|\b(?:\d{1,3}\.){3}\d{1,3}\b")
#: Lines of shells that these patterns find, and whose commands say more.
EVALUATED = {
    "RSK-curl-shell": re.compile(r"\b(?:echo|printf|cat|die|warn|log|info)\b"),
    "MAL-shell-socket": re.compile(r"/dev/(?:tcp|udp)/"),
}
PRIVATE_KEY = "SEC-private-key"


class ToolFailed(Exception):
    """A scanning program was killed from outside, or ``is_late``: it ran out of time before its limit of CPU time,
    since it hangs or the machine is overloaded. Neither is a verdict on the files that it read."""

    def __init__(self, name: str, *, is_late: bool) -> None:
        super().__init__(name)
        self.is_late = is_late


@dataclass(frozen=True, slots=True)
class Tools:
    """Programs as they are seen within the root."""

    ruff: str
    node: tuple[str, ...] | None = None
    binds: tuple[tuple[str, str], ...] = ()


class Analyser:
    """Rules are read when it is made; ``analyse`` is called once in each child."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._secrets = SecretRules()
        self._signatures = Signatures()
        sys.setrecursionlimit(python_code.MAX_DEPTH)

    def analyse(self, sources: Sequence[Source], paths: Sequence[str], wall_seconds: float) -> dict[str, Any]:
        """Return ``{"hits", "references", "hooks", "failures", "skipped"}``, of JSON alone."""
        review = Review(sources, paths, time.monotonic() + wall_seconds)
        for source in sources:
            review.texts[source.path] = source.content.decode("utf-8", errors="replace")
            review.lines[source.path] = review.texts[source.path].split("\n")
        with ThreadPoolExecutor(2) as tools:
            scripts = tools.submit(self._check_javascript, review) if review.of(Kind.JAVASCRIPT) else None
            parsed = self._read_python(review)
            linted = tools.submit(self._lint, parsed, review.left()) if parsed else None
            self._read_scripts(review)
            for source in sources:
                self._search(review, source)
                self._judge_text(review, source)
            for source in sources:
                folder, _, name = source.path.rpartition("/")
                if name == "package.json" and "node_modules" not in folder:
                    self._read_package(review, source, folder)
            self._collect(review, scripts, "Node.js")
            self._follow_scripts(review)
            warned = self._collect(review, linted, "ruff") or []
        for rule, path, line, message, quotes in warned:
            # Once all secrets are known: a password is reported only once.
            if not (quotes and any(secret.line == line for secret in review.secrets[path])):
                review.add(rule, path, line, message, FOR_WARNINGS, hidden=quotes)
        return {
            "hits": list(reported(review)),
            "references": {path: asdict(refers) for path, refers in review.references.items()},
            "hooks": sorted(review.hooks),
            "failures": review.failures,
            "skipped": review.skipped,
        }

    # Python

    def _read_python(self, review: Review) -> list[Source]:
        """Return the Python sources that parse."""
        sources = review.of(Kind.PYTHON)
        facts = python_code.analyse_all({source.path: source.content for source in sources}, review.paths)
        parsed = []
        for source in sources:
            seen = facts[source.path]
            if "error" in seen:
                words = CATALOGUE[f"SAN-{seen['kind']}"]
                message = f"{words.message}: {seen['error']}"
                review.add(f"SAN-{seen['kind']}", source.path, seen["line"], message, words.advice)
                continue
            parsed.append(source)
            for rule, line, trace in seen["hits"]:
                if not _is_own_cluster(review, rule, trace):
                    review.add_flow(rule, source.path, line, trace)
            for match in patterns.in_strings([*seen["strings"], *seen["commands"]]):
                review.add(match.rule, source.path, match.line)
            for line, command in seen["commands"]:
                self._judge_command(review, source.path, line, command)
            names = {key: tuple(seen[key]) for key in ("modules", "paths", "folders")}
            review.references[source.path] = References(**names, anything=seen["anything"])
            if source.path.rpartition("/")[2] == "setup.py":
                review.hooks.add(source.path)
        return parsed

    def _lint(self, sources: Sequence[Source], seconds: float) -> list[tuple[str, str, int, str, bool]]:
        """Return ruff's warnings: (rule, path, line, message, True if the line itself may have a password)."""
        folder = FOLDER / "lint"
        _write_out(folder, sources, ".py")
        done = subprocess.run(
            [self._tools.ruff, *ARGUMENTS, str(folder)],
            capture_output=True,
            env={"RAYON_NUM_THREADS": "2"},
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=seconds,
        )
        found = []
        for entry in json.loads(done.stdout):
            code, source = entry["code"], sources[int(Path(entry["filename"]).stem)]
            if not code or not code.startswith("S") or not code[1:].isdigit():
                continue  # a syntax error, which is reported already
            quotes = code in PASSWORDS
            message = QUOTED.sub("…", entry["message"]) if quotes else entry["message"]
            found.append((f"RUF-{code}", source.path, entry["location"]["row"], message, quotes))
        return found

    # JavaScript

    def _check_javascript(self, review: Review) -> None:
        sources = review.of(Kind.JAVASCRIPT)
        if self._tools.node is None:
            review.skipped.append("node")
            return
        folder = FOLDER / "scripts"
        _write_out(folder, sources, "")
        files = [(source.path, number) for number, source in enumerate(sources)]
        contents = {str(number): source.content for number, source in enumerate(sources)}
        followed = [int(number) for number in python_code.followed_files(contents, MAX_SCRIPTS)]
        problems, trees = javascript.read_scripts(self._tools.node, folder, files, followed, review.left())
        for path, line, message, is_syntax in problems:
            rule = "SAN-syntax" if is_syntax else "SAN-unparsable"
            words = CATALOGUE[rule]
            review.add(rule, path, line, f"{words.message}: {message}", words.advice)
        if trees is None:
            review.skipped.append("acorn")
        review.trees = {sources[number].path: tree for number, tree in (trees or {}).items()}

    def _follow_scripts(self, review: Review) -> None:
        """Follow the flow of data through the scripts, once their trees are there."""
        trees = {}
        for path, tree in review.trees.items():
            with suppress(RecursionError, KeyError, TypeError, AttributeError):
                trees[path] = javascript.translate(tree)
        flows = flow_rules.follow(trees)
        for path, line, command in flows.commands:
            for match in patterns.in_strings([(line, command)]):
                review.add(match.rule, path, match.line)
            self._judge_command(review, path, line, command)
        for hit in flows.hits:
            text = review.lines[hit.path][max(0, hit.line - 1)]
            rule = patterns.MINIFIED_RULE if len(text) > patterns.MINIFIED else hit.rule
            if not _is_own_cluster(review, rule, hit.trace):
                review.add_flow(rule, hit.path, hit.line, hit.trace)

    def _read_scripts(self, review: Review) -> None:
        basenames: dict[str, list[str]] = defaultdict(list)
        for path in review.paths:
            basenames[path.rpartition("/")[2]].append(path)
        for source in review.of(Kind.JAVASCRIPT, Kind.SCRIPT):
            text = review.texts[source.path]
            review.references[source.path] = javascript.references(text, basenames)
            commands = Commands(review.script)
            judged = source.kind == Kind.SCRIPT and judge_script(source.path, text, commands)
            for match in patterns.matches(Kind(source.kind), text):
                # What a shell runs was evaluated: such a line may be printed alone, or wait for a port.
                line = review.lines[source.path][match.line - 1]
                if not (judged and match.rule in EVALUATED and EVALUATED[match.rule].search(line)):
                    review.add(match.rule, source.path, match.line)
            self._add_commands(review, source.path, commands)

    def _judge_command(self, review: Review, path: str, line: int, command: str) -> None:
        commands = Commands(review.script, line=line)
        commands.run(command, None)
        self._add_commands(review, path, commands)

    def _add_commands(self, review: Review, path: str, commands: Commands) -> None:
        """Add what commands in a file do, and what the code within them does."""
        for hit in commands.hits:
            review.add(hit.rule, path, hit.line)
        for program, line, code in commands.snippets:
            for match in patterns.matches(Kind.SCRIPT, code):
                review.add(match.rule, path, line)
            if program.startswith("python"):
                facts = python_code.analyse_all({path: code.encode(errors="replace")}, review.paths)[path]
                for rule, _, trace in facts.get("hits", ()):
                    review.add_flow(rule, path, line, [(path, line) for _ in trace])
                for match in patterns.in_strings(facts.get("strings", ())):
                    review.add(match.rule, path, line)

    # Any file

    def _search(self, review: Review, source: Source) -> None:
        text = review.texts[source.path]

        # One secret a line: a specific rule wins over a generic one.
        def weight(secret: Secret) -> tuple[bool, bool]:
            return (secret.rule.startswith("GEN-"), secret.rule == "GEN-generic-api-key")

        best: dict[int, Secret] = {}
        for secret in self._secrets.find(source.path, text):
            known = best.get(secret.line)
            if known is None or weight(secret) < weight(known):
                best[secret.line] = secret
        review.secrets[source.path] = found = list(best.values())
        for secret in found if source.path else ():  # what commands and ``env`` have is masked, and no finding
            if secret.rule == PRIVATE_KEY and secret_rules.is_local(source.path, review.texts):
                review.add(
                    secret_rules.LOCAL_KEY, source.path, secret.line, secret_rules.LOCAL_KEY_MESSAGE, FOR_WARNINGS
                )
            else:
                review.add(secret.rule, source.path, secret.line, secret.description, FOR_SECRETS)
        for signature in self._signatures.find(source.path, source.content):
            review.add(signature.rule, source.path, signature.line, signature.description, FOR_WARNINGS)

    def _judge_text(self, review: Review, source: Source) -> None:
        """Add what is seen in a file of any kind, without its syntax."""
        text = review.texts[source.path]
        if source.kind in CODE:
            for line in patterns.reordered(text):
                review.add("MAL-bidi", source.path, line)
        for rule, lines in classes.find(source.path, text, is_code=source.kind in CODE):
            review.add_flow(rule, source.path, lines[-1], [(source.path, line) for line in lines])
        words = CATALOGUE["MAL-pickle"]
        for name in classes.pickled(source.path, source.content):
            review.add("MAL-pickle", source.path, 0, f"{words.message}: {name}", words.advice)

    def _read_package(self, review: Review, source: Source, folder: str) -> None:
        try:
            package = json.loads(source.content)
        except (ValueError, RecursionError):
            review.add("SAN-syntax", source.path, 0, "this is not JSON", CATALOGUE["SAN-syntax"].advice)
            return
        package = package if isinstance(package, dict) else {}
        scripts = package.get("scripts")
        commands = {str(k): v for k, v in scripts.items() if isinstance(v, str)} if isinstance(scripts, dict) else {}
        main = [package["main"]] if isinstance(package.get("main"), str) else []
        words = [word for command in commands.values() for word in command.replace("=", " ").split()]
        review.references[source.path] = References(scripts=tuple(f"./{word}" for word in (*main, *words)))
        for name, command in commands.items():
            self._judge_command(review, source.path, _line_of(review, source, name), command)
            if name in HOOKS:
                self._judge_hook(review, source, folder, name, command)

    def _judge_hook(self, review: Review, source: Source, folder: str, name: str, command: str) -> None:
        line = _line_of(review, source, name)
        fetches = patterns.HOOK.search(command) is not None
        for word in command.split():
            path = f"{folder}/{word}".strip("/").removeprefix("./")
            for script in (path, f"{path}.js"):
                if script in review.texts:
                    review.hooks.add(script)
                    text = review.texts[script]
                    if patterns.FETCHES.search(text) and patterns.RUNS.search(text):
                        review.add("MAL-install-hook", script, 0)
        review.add("MAL-install-hook" if fetches else "HOOK-install", source.path, line)

    def _collect(self, review: Review, work: Future[T] | None, name: str) -> T | None:
        """Return the work's result, or None where there is none, which a failure explains."""
        try:
            if work is not None:
                with _machine_faults(name):
                    return work.result()
        except subprocess.CalledProcessError as error:
            how = (
                f"was ended by signal {-error.returncode}"
                if error.returncode < 0
                else f"exited with {error.returncode}"
            )
            review.failures.append(f"{name} {how}")
        except (OSError, ValueError, LookupError, TypeError) as error:
            review.failures.append(f"{name} could not be used: {type(error).__name__}")
        return None


def _is_own_cluster(review: Review, rule: str, trace: Sequence[Sequence[Any]]) -> bool:
    """Return True where a service account's token goes to the cluster that gave it, and no other host is named."""
    texts = [review.texts.get(str(path), "") for path in {step[0] for step in trace}]
    is_token = any("serviceaccount" in text and OWN_CLUSTER.search(text) for text in texts)
    return rule == "MAL-secrets-sent" and is_token and not any(OTHER_HOST.search(text) for text in texts)


def _line_of(review: Review, source: Source, name: str) -> int:
    return next((n for n, text in enumerate(review.lines[source.path], 1) if f'"{name}"' in text), 0)


@contextmanager
def _machine_faults(name: str) -> Iterator[None]:
    """Raise ``ToolFailed`` where the program's end says nothing about the files."""
    try:
        yield
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(name, is_late=True) from error
    except subprocess.CalledProcessError as error:
        if error.returncode == -signal.SIGKILL:
            # No limit of a review ends a program so: SIGXCPU or a failed allocation does.
            raise ToolFailed(name, is_late=False) from error
        raise


def _write_out(folder: Path, sources: Sequence[Source], ending: str) -> None:
    """Write the files under numbers: no name of the user's can be taken for a configuration or an option."""
    folder.mkdir()
    for number, source in enumerate(sources):
        (folder / f"{number}{ending}").write_bytes(source.content)
