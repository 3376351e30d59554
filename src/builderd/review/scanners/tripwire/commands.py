"""Commands: what programs do with what they get, and what of it is harm.

A program that is not known hands on all kinds of data that it gets: to its output, and to every file that it names.
What a shell hands to another one, to ``eval`` or to ``python -c`` is read in turn.
"""

from __future__ import annotations

import base64
import binascii
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import re2

from builderd.review.scanners.tripwire import shell
from builderd.review.scanners.tripwire.python_code import places
from builderd.review.scanners.tripwire.shell import NOTHING, UNKNOWN, Data, Shell, joined, unescaped

_TABLES = tomllib.loads(Path(__file__).with_name("rules").joinpath("commands.toml").read_text())
_NAMES = {name: frozenset(words.split()) for name, words in _TABLES["names"].items()}
_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_RULES = [(rule, re2.compile(regex, _OPTIONS)) for rule, regexes in _TABLES["rules"].items() for regex in regexes]
_PRELOAD, _SECRETS = (re2.compile(_TABLES[name], _OPTIONS) for name in ("preload", "secrets"))
#: Options of an interpreter behind which its code stands, by its name without a version; of a shell; of any other.
_CODE_OPTIONS = {"python": r"-c", "node": r"-[ep]|--eval|--print", "perl": r"-[a-z]*[eE]", "php": r"-r"}
_CODE_OF_SHELL, _CODE_OF_OTHER = r"-[a-z]*c", r"-e"
#: Options by which an interpreter runs a module, or more than its input.
_MODULES = frozenset({"-m", "-W", "-r", "--require", "--import", "-s"})
#: Words between a prefix and its command: a variable, a duration.
_ARGUMENT = re.compile(r"[A-Za-z_]\w*\+?=|[\d.]+[smhd]?$")
_SCRIPT_NAME = re.compile(r"(?:\.(?:sh|bash|zsh)|/(?:pre|post)-\w+)$")
_SCHEDULE = re.compile(r"(?m)^[^\S\n]*(?:#.*|@\w+|(?:\S+[^\S\n]+){5})")
_OPENS = re.compile(r"-[a-zA-Z]{0,3}[dD][a-zA-Z]{0,3}|--decode|--decompress|--decrypt|-r")
_OPENERS = ("gunzip", "zcat", "unxz", "bzcat", "uudecode")
_OF_KEY = frozenset({"-i", "--cert", "--key", "--cacert", "-E", "--netrc-file"})
_TO_NOWHERE = frozenset({"", UNKNOWN, "/dev/null", "/dev/stderr", "/dev/stdout"})
#: Kinds of code that is run, and kinds of data that is sent, with the rule of each.
_RUN = (
    (places.RECEIVED, "MAL-remote-commands"),
    (places.FETCHED, "RSK-curl-shell"),
    (places.DECODED, "MAL-decoded-executed"),
    (shell.CUT, shell.UNREAD),
)
_SENT = (
    (places.SECRET, "MAL-secrets-sent"),
    (places.ENVIRONMENT, "MAL-environment-sent"),
    (shell.VARIABLE, "MAL-environment-sent"),
)
_MACHINE = frozenset({places.USER, places.HOST})


@dataclass(slots=True)
class Commands(Shell):
    """Judges the commands of one script."""

    #: Functions of the script that a command calls.
    _called: set[str] = field(default_factory=set)

    def call(self, words: Sequence[Data], stdin: Data) -> Data:
        if len(words) > 2 and words[0].text in ("command", "type") and words[1].text in ("-v", "-V", "-P"):
            return words[2]
        words = _without_prefixes(words)
        name = _program(words[0].text) if words else ""
        if not name or name.startswith("-"):
            return NOTHING
        self._judge_run(words[0])
        self._judge_text(" ".join([name, *(one.text for one in words[1:])]))
        arguments = words[1:]
        if name in self.functions:
            self._called.add(name)
            return self.call_function(name, arguments, stdin)
        if name in _NAMES["SHELLS"] or name in _NAMES["INTERPRETERS"]:
            return self._interpret(name, arguments, stdin)
        if name in _NAMES["NETWORK"]:
            return self._speak(name, arguments, stdin)
        kinds = self._kinds(arguments, stdin)
        known = _PROGRAMS.get(name)
        return self._any(name, words, kinds) if known is None else known(self, arguments, stdin, kinds)

    def assigned(self, name: str, value: Data) -> None:
        if name == "LD_PRELOAD" and value.text and value.known and not _PRELOAD.search(value.text):
            self.hit("RSK-preload")
        self._judge_text(f"{name}={value.text}")

    # Files

    def content(self, path: str) -> Data:
        path = path.removeprefix("./").removeprefix("/app/")
        if path in self.files or path == "/dev/tty":
            return self.files.get(path, NOTHING)
        if is_secret(path):
            return Data(UNKNOWN, frozenset({places.SECRET}))
        if (text := self.read(path.rpartition(UNKNOWN)[2].lstrip("/"))) is not None:
            return Data(text[: shell.MAX_SCRIPT])
        name = path.rpartition("/")[2]
        near = [
            data.kinds
            for known, data in self.files.items()
            if path.startswith(f"{known}/") or (len(name) > 2 and known.rpartition("/")[2] == name)
        ]
        return Data(UNKNOWN, frozenset().union(*near))

    def write(self, path: str, content: Data) -> None:
        path = path.removeprefix("./").removeprefix("/app/")
        if path in _TO_NOWHERE:
            return
        # The project's own hooks are among the files that are read.
        starts = places.START_FILES.search(path) is not None and not path.startswith(".git/hooks/")
        if starts:
            self.hit("RSK-persists")
        self._judge_text(f"> {path}")
        self.files[path] = self.files.get(path, NOTHING) + content
        if content.known and (content.text.startswith("#!") or starts or _SCRIPT_NAME.search(path)):
            self.run(content.text, None)

    def _kinds(self, words: Sequence[Data], stdin: Data) -> frozenset[str]:
        """Return the kinds of all that a program gets: its words, what they name, and its input."""
        named = [self.content(path).kinds for one in words for path in _paths(one.text)]
        return stdin.kinds.union(*(one.kinds for one in words), *named)

    # Judgements

    def _judge_text(self, text: str) -> None:
        for rule, regex in _RULES:
            if regex.search(text):
                self.hit(rule)

    def _judge_run(self, code: Data) -> None:
        for kind, rule in _RUN:
            if kind in code.kinds:
                self.hit(rule)

    def send(self, data: Data) -> None:
        for kind, rule in _SENT:
            if kind in data.kinds:
                self.hit(rule)

    def _interpret(self, name: str, arguments: Sequence[Data], stdin: Data) -> Data:
        """Judge a shell or an interpreter: code in an option, a file, or the input."""
        is_shell = name in _NAMES["SHELLS"]
        options = _CODE_OF_SHELL if is_shell else _CODE_OPTIONS.get(name.rstrip("0123456789."), _CODE_OF_OTHER)
        for option, code in pairwise(arguments):
            if re.fullmatch(options, option.text):
                return self.run_code(name, code, stdin)
        files = [one for one in arguments if not one.text.startswith("-") or one.text == "-"]
        if any(one.text in _MODULES for one in arguments) and not stdin.kinds:
            return NOTHING
        if not files or files[0].text in ("-", "/dev/stdin"):
            return self.run_code(name, stdin, NOTHING) if stdin.text else NOTHING
        content = self.content(files[0].text)
        self._judge_run(content)
        return self._run_file(content, stdin) if is_shell else Data(UNKNOWN)

    def _run_file(self, content: Data, stdin: Data) -> Data:
        return self.run(content.text, None, stdin) if UNKNOWN not in content.text[: shell.MAX_SCRIPT] else Data(UNKNOWN)

    def run_uncalled(self) -> None:
        """Evaluate the functions that nothing in the script calls: another one may."""
        for name in list(self.functions):
            if name not in self._called:
                self.call_function(name, (), NOTHING)

    def run_code(self, name: str, code: Data, stdin: Data) -> Data:
        """Judge code that a program of this name runs."""
        self._judge_run(code)
        if name not in _NAMES["SHELLS"]:
            if code.text.strip(UNKNOWN):
                self.snippets.append((name, self.line, code.text))
            return Data(UNKNOWN)
        if code.text.strip() == UNKNOWN and not code.kinds:
            self.hit(shell.UNREAD)
        return self.run(code.text, None, stdin)

    def _speak(self, name: str, arguments: Sequence[Data], stdin: Data) -> Data:
        """Judge a program that speaks to others: what it gets is sent, what it gives was fetched."""
        texts = [one.text for one in arguments]
        reads_input = name not in ("curl", "wget") or any(re.search(r"(?:^|[@=])-$|/dev/stdin", one) for one in texts)
        kinds = stdin.kinds if reads_input else frozenset()
        for before, one in zip(["", *texts], arguments, strict=False):
            is_key = before in _OF_KEY or (before == "-F" and name != "curl")
            if not is_key:
                kinds |= self._kinds([one], NOTHING)
        # Requests carry an app's own keys to the services that gave them.
        self.send(Data(UNKNOWN, kinds - {shell.VARIABLE}))
        fetches = name in _NAMES["FETCHERS"]
        kind = places.FETCHED if fetches else places.RECEIVED if name in _NAMES["STREAMS"] else None
        given = Data(UNKNOWN, frozenset({kind} if kind else ()))
        target = _output_of(name, texts) if fetches else None
        if target in (None, "-", "/dev/stdout"):
            return given
        self.write(target or "", given)
        return NOTHING

    def _any(self, name: str, words: Sequence[Data], kinds: frozenset[str]) -> Data:
        if "/" in words[0].text:
            self._judge_run(self.content(words[0].text))
        texts = [one.text for one in words[1:]]
        if name in _NAMES["UNPACKERS"] and places.FETCHED in kinds:
            folders = (after for before, after in pairwise(texts) if before in ("-C", "-d", "--directory"))
            self.files[next(folders, ".").rstrip("/")] = Data(UNKNOWN, kinds)
        elif name in _NAMES["CUTTERS"] and _cuts(texts):
            return Data(UNKNOWN, kinds | {shell.CUT})
        elif kinds - {places.FETCHED, shell.VARIABLE}:
            for path in (path for text in texts for path in _paths(text)):
                if path not in self.files and not is_secret(path):
                    self.files[path.removeprefix("./")] = Data(UNKNOWN, kinds)
        return Data(UNKNOWN, kinds)

    # Programs that are known

    def echo(self, words: Sequence[Data], _: Data, kinds: frozenset[str]) -> Data:
        """``echo``."""
        texts = [one.text for one in words]
        options = [text for text in texts if re.fullmatch(r"-[neE]+", text)]
        text = " ".join(texts[len(options) :]) + "\n"
        return Data(unescaped(text) if any("e" in one for one in options) else text, kinds)

    def printf(self, words: Sequence[Data], _: Data, kinds: frozenset[str]) -> Data:
        """``printf`` with its conversions."""
        text, rest = unescaped(words[0].text) if words else "", [one.text for one in words[1:]]
        while rest and (found := re.search(r"%[-0-9]*[sbdqxc]", text)):
            value = unescaped(rest.pop(0)) if found[0].endswith("b") else rest.pop(0)
            text = text[: found.start()] + value + text[found.end() :]
        return Data(text, kinds)

    def environment(self, words: Sequence[Data], _: Data, kinds: frozenset[str]) -> Data:
        """``env``, ``set`` and ``printenv`` without a name."""
        is_whole = all(one.text.startswith("-") for one in words)
        return Data(UNKNOWN, frozenset({places.ENVIRONMENT}) if is_whole else kinds)

    def cat(self, words: Sequence[Data], stdin: Data, _: frozenset[str]) -> Data:
        """``cat`` and the like."""
        paths = [one.text for one in words if not one.text.startswith("-")]
        return sum((self.content(path) for path in paths), NOTHING) if paths else stdin

    def tee(self, words: Sequence[Data], stdin: Data, _: frozenset[str]) -> Data:
        """``tee``."""
        for one in words:
            if not one.text.startswith("-"):
                self.write(one.text, stdin)
        return stdin

    def read_line(self, words: Sequence[Data], stdin: Data, _: frozenset[str]) -> Data:
        """``read``: its variables get the input."""
        for one in words:
            self.variables[one.text] = stdin if stdin.text else Data(UNKNOWN)
        return NOTHING

    def translate(self, _: Sequence[Data], stdin: Data, kinds: frozenset[str]) -> Data:
        """``rev`` and ``tr``: what is known before is hidden by them for a purpose."""
        return Data(UNKNOWN, kinds | {places.DECODED} if stdin.known and stdin.text.strip() else kinds)

    def decode(self, words: Sequence[Data], stdin: Data, kinds: frozenset[str]) -> Data:
        """``base64 -d`` and ``xxd -r``, resolved; ``openssl``, ``gunzip`` and others, whose output is not known."""
        texts = [one.text[:1_000] for one in words]
        if texts[:1] == ["s_client"]:
            self.send(Data(UNKNOWN, kinds))
            return Data(UNKNOWN, frozenset({places.RECEIVED}))
        if not any(_OPENS.fullmatch(text) for text in texts):
            return Data(UNKNOWN, kinds)
        kinds |= {places.DECODED}
        for option, path in pairwise(texts):
            if option in ("-out", "-o", "--output"):
                self.write(path, Data(UNKNOWN, kinds))
        given = "".join(stdin.text.split()) if stdin.known else ""
        for decoder in (bytes.fromhex, lambda text: base64.b64decode(text + "=" * (-len(text) % 4), validate=True)):
            try:
                return Data(decoder(given).decode(errors="replace") or UNKNOWN, kinds)
            except (ValueError, binascii.Error):
                continue
        return Data(UNKNOWN, kinds)

    def check(self, words: Sequence[Data], stdin: Data, kinds: frozenset[str]) -> Data:
        """``sha256sum -c`` and others: the downloads that it names are what is known of them."""
        if any(one.text in ("-c", "--check", "verify", "-Vm") for one in words):
            named = " ".join(
                [stdin.text, *(one.text for one in words), *(self.content(one.text).text for one in words)]
            )
            for path in [path for path in self.files if path.rpartition("/")[2] in named]:
                self.files[path] = Data(self.files[path].text, self.files[path].kinds - {places.FETCHED})
        return Data(UNKNOWN, kinds)

    def make(self, words: Sequence[Data], _: Data, __: frozenset[str]) -> Data:
        """``make``: the recipes of the Makefile are read."""
        _judge_recipes(self.read("Makefile") or "", self, is_own=False)
        return NOTHING

    def resolve(self, _: Sequence[Data], __: Data, kinds: frozenset[str]) -> Data:
        """``dig`` and others: a name carries what is in it."""
        if kinds & (_MACHINE | {places.SECRET, places.ENVIRONMENT}):
            self.hit("MAL-data-in-dns")
        return Data(UNKNOWN, frozenset({places.FETCHED}))

    def git(self, words: Sequence[Data], _: Data, kinds: frozenset[str]) -> Data:
        """``git``: a push sends all that was written."""
        if any(one.text == "push" for one in words):
            self.send(Data(UNKNOWN, kinds.union(*(one.kinds for one in self.files.values()))))
        return Data(UNKNOWN, kinds)

    def schedule(self, words: Sequence[Data], stdin: Data, _: frozenset[str]) -> Data:
        """``crontab``: the commands of its lines are read."""
        if not {"-l", "-r"} & {one.text for one in words}:
            self.hit("RSK-persists")
            self.run(_SCHEDULE.sub("", stdin.text), None)
        return NOTHING

    def copy(self, words: Sequence[Data], _: Data, kinds: frozenset[str]) -> Data:
        """``cp``, ``mv``, ``ln`` and ``install``."""
        if len(words) > 1:
            self.write(words[-1].text, Data(UNKNOWN, kinds))
        return NOTHING

    def evaluate(self, words: Sequence[Data], stdin: Data, _: frozenset[str]) -> Data:
        """``eval``."""
        code = joined(words)
        # What a tool prints for the shell, such as ``eval "$(ssh-agent -s)"``; and the shell's own arguments.
        is_own = (code.text.strip() == UNKNOWN and not code.kinds) or code.text.startswith("set -- ")
        return NOTHING if is_own else self.run_code("sh", code, stdin)

    def source(self, words: Sequence[Data], stdin: Data, _: frozenset[str]) -> Data:
        """``source`` and ``.``."""
        content = self.content(words[0].text) if words else NOTHING
        self._judge_run(content)
        return self._run_file(content, stdin)

    def trap(self, words: Sequence[Data], stdin: Data, _: frozenset[str]) -> Data:
        """``trap``: its command is read."""
        return self.run(words[0].text, None, stdin) if words else NOTHING

    def find(self, words: Sequence[Data], stdin: Data, kinds: frozenset[str]) -> Data:
        """``find -exec``."""
        starts = [number for number, one in enumerate(words, 1) if one.text in ("-exec", "-execdir", "-ok")]
        return self._hand(words[starts[0] :], kinds) if starts else Data(UNKNOWN, kinds)

    def xargs(self, words: Sequence[Data], stdin: Data, kinds: frozenset[str]) -> Data:
        """``xargs``."""
        rest = list(words)
        while rest and rest[0].text.startswith("-"):
            rest = rest[2 if rest[0].text in ("-I", "-n", "-P", "-L", "-d", "-a") else 1 :]
        return self._hand(rest, kinds) if rest else stdin

    def _hand(self, words: Sequence[Data], kinds: frozenset[str]) -> Data:
        found = Data(UNKNOWN, kinds)
        return self.call([*(one for one in words if one.text not in (";", "+")), found], found)


_Program = Callable[[Commands, Sequence[Data], Data, frozenset[str]], Data]
_PROGRAMS: Mapping[str, _Program] = {
    "echo": Commands.echo,
    "printf": Commands.printf,
    **dict.fromkeys(("env", "printenv", "set", "export"), Commands.environment),
    **dict.fromkeys(("cat", "head", "tail", "tac", "sort", "uniq"), Commands.cat),
    "tee": Commands.tee,
    **dict.fromkeys(("read", "mapfile", "readarray"), Commands.read_line),
    **dict.fromkeys(("rev", "tr"), Commands.translate),
    **dict.fromkeys(_OPENERS, lambda *given: Data(UNKNOWN, given[-1] | {places.DECODED})),
    **dict.fromkeys(("base64", "base32", "xxd", "openssl", "xz", "gzip", "bzip2", "gpg"), Commands.decode),
    **dict.fromkeys(("whoami", "id", "hostname", "uname"), lambda *_: Data(UNKNOWN, _MACHINE)),
    **dict.fromkeys(("sha256sum", "sha512sum", "shasum", "md5sum", "cosign", "minisign"), Commands.check),
    "git": Commands.git,
    **dict.fromkeys(("make", "gmake"), Commands.make),
    **dict.fromkeys(("dig", "drill", "host", "nslookup", "ping"), Commands.resolve),
    "crontab": Commands.schedule,
    **dict.fromkeys(("cp", "mv", "ln", "install"), Commands.copy),
    "eval": Commands.evaluate,
    **dict.fromkeys(("source", "."), Commands.source),
    "trap": Commands.trap,
    "find": Commands.find,
    "xargs": Commands.xargs,
}


def judge_script(path: str, text: str, commands: Commands) -> bool:
    """Evaluate a script, Makefile or ``.npmrc`` by its name; return True for a shell's script that was understood."""
    name = path.rpartition("/")[2]
    if name in ("Makefile", "makefile", "GNUmakefile") or name.endswith(".mk"):
        _judge_recipes(text, commands)
    elif name == ".npmrc":
        for number, line in enumerate(text.split("\n"), 1):
            commands.run(f"npm set {line.replace('=', ' ', 1)}", number)
    elif _OTHERS.search(path) is None and not _FOREIGN.match(text):
        commands.run(text)
        commands.run_uncalled()
        return not commands.is_broken
    return False


#: Scripts of other languages: by their names, or their first line.
_OTHERS = re.compile(
    r"\.(?:[cm]?[jt]sx?|vue|svelte|rb|ru|php|phtml|p[lm]|psgi|lua|ps1|go|rs|py)$|(?:^|/)(?:Gemfile|Rakefile|Vagrantfile)$"
)
_FOREIGN = re.compile(r"#!.*(?:ruby|perl|php|lua|deno|bun|tsx|node|python)|\s*<\?php")
_VARIABLE_OF_MAKE = re.compile(r"\s*(?:export\s+)?([\w.]+)\s*(?:[:?+]{0,2}=|!=)\s*(.*)")


def _judge_recipes(text: str, commands: Commands, *, is_own: bool = True) -> None:
    """Evaluate the recipes and ``$(shell …)`` of a Makefile; not ``is_own``: hits are where the command stands."""
    values: dict[str, str] = {}
    for number, line in _whole_lines(text):
        if not line.startswith("\t") and (found := _VARIABLE_OF_MAKE.match(line)):
            values[found[1]] = found[2]
        for inner in re.finditer(r"\$\(shell\s+(.*)\)", line):
            commands.run(_of_make(inner[1], values), number if is_own else None)
        if line.startswith("\t"):
            commands.run(_of_make(line.strip().lstrip("@-+ "), values), number if is_own else None)


def _whole_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line), with the lines that a backslash continues."""
    number = 1
    for line in text.replace("\\\n", "\x01").split("\n"):
        yield number, line.replace("\x01", " ")
        number += 1 + line.count("\x01")


def _of_make(text: str, values: Mapping[str, str], depth: int = 4) -> str:
    def value(found: re.Match[str]) -> str:
        return _of_make(values.get(found[1], ""), values, depth - 1) if depth else ""

    return re.sub(r"\$[({]([\w.]+)[)}]", value, text.replace("$$", "\x02")).replace("\x02", "$")


def _without_prefixes(words: Sequence[Data]) -> Sequence[Data]:
    """Drop programs that run the rest of their line."""
    while words and words[0].text.rpartition("/")[2] in _NAMES["PREFIXES"]:
        is_env = words[0].text.endswith("env")
        rest = list(words[1:])
        while rest and (rest[0].text[:1] == "-" or _ARGUMENT.match(rest[0].text)):
            takes = not is_env and len(rest) > 1 and rest[0].text in _NAMES["WITH_VALUE"]
            rest = rest[2 if takes and not rest[1].text.startswith("-") else 1 :]
        if not rest:
            return words
        words = rest
    return words


def _program(text: str) -> str:
    """Return a program's name, also of a glob that finds one."""
    name = text.rpartition("/")[2]
    if any(one in text for one in "?*["):
        return next((one for one in sorted(_NAMES["GLOBBED"]) if fnmatchcase(one, name)), name)
    return name


def _paths(text: str) -> Iterator[str]:
    """Yield what a word may name: itself, and what follows ``@`` or ``=``."""
    text = text[-1_000:]
    if text:
        yield text
    for mark in ("@", "="):
        before, _, after = text.partition(mark)
        if after and "://" not in before:
            yield after.partition(";")[0]


def _cuts(texts: Sequence[str]) -> bool:
    """Return True for a pattern and a file that keeps no variables."""
    files = [text for text in texts if not text.startswith("-")][1:]
    return bool(files) and not any(
        text.rpartition("/")[2].startswith(".env") or (text.startswith("/") and not text.startswith("/app/"))
        for text in files
    )


def is_secret(path: str) -> bool:
    """Return True for a file in which people keep secrets."""
    return places.SECRET_FILES.search(path) is not None or _SECRETS.search(path) is not None


def _output_of(name: str, texts: Sequence[str]) -> str | None:
    """Return the file to which a download goes; None: to the output."""
    if name in ("scp", "rsync", "ftp", "sftp", "lftp", "tftp"):
        return texts[-1] if texts and ":" not in texts[-1] else None
    for text, following in pairwise([*texts, ""]):
        if text in ("--output", "--output-document") or re.fullmatch(r"-\w*o" if name == "curl" else r"-\w*O|-o", text):
            return following
        if text.startswith(("--output=", "--output-document=")):
            return text.partition("=")[2]
    is_named = name in ("wget", "aria2c", "axel") or any(re.fullmatch(r"-\w*O\w*|--remote-name", one) for one in texts)
    if any(re.fullmatch(r"-\w*O-", one) for one in texts) or not is_named:
        return None
    return next((one.rpartition("/")[2].partition("?")[0] for one in texts if "/" in one), None)
