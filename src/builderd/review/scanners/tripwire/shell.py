"""Shell scripts: evaluated word by word from tree-sitter's trees, as far as constants go.

Nothing is executed: quotes, variables, functions, substitutions, here-documents, escapes and redirections are resolved,
and data keeps its kinds (secret, environment, fetched, decoded, …) on its way. What a command does is judged by
``commands``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

from builderd.review.scanners.tripwire.python_code import places

#: Text that is not known.
UNKNOWN = "\0"
#: Nodes that are evaluated, texts within texts, bytes of one script and characters of one value; past them is a hit.
MAX_STEPS, MAX_DEPTH, MAX_SCRIPT, MAX_LENGTH = 200_000, 8, 1_000_000, 100_000
#: Kind of a part of a file or of a value: what is run of it was not read. Kind of a variable with a secret's name.
CUT, VARIABLE = "cut", "variable"

#: In the place of ``UNKNOWN`` in a text that is parsed: a letter of no script, where NUL would end it.
_STAND_IN = "\ue000"
_LANGUAGE = Language(tree_sitter_bash.language())
_SLICE = re.compile(r"\$\{(\w+):(\d+)(?::(\d+))?\}")
_DEFAULT = re.compile(r"\$\{(\w+):?[-=]([^{}$`]*)\}")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b", "E": "\x1b"}
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{1,4})|(.))", re.DOTALL)
#: Nodes that are words, or parts of a statement that run nothing by themselves.
_PASSIVE = frozenset(
    {"comment", "heredoc_start", "heredoc_end", "heredoc_body", "variable_name", "word", "test_command"}
)
_PLAIN = frozenset({"word", "number", "variable_name", "test_operator", "regex", "extglob_pattern"})
_QUOTED = frozenset({"string", "raw_string", "ansi_c_string", "word", "number"})
_SECRET_NAME = re.compile(r"PASSW|TOKEN|SECRET|_KEY\b|DATABASE_URL", re.IGNORECASE)
_NAMES = ("variable_name", "subscript", "special_variable_name")


class Data(NamedTuple):
    """A text, ``UNKNOWN`` for each unknown part, with the kinds of data in it."""

    text: str = ""
    kinds: frozenset[str] = frozenset()

    def __add__(self, other: Data) -> Data:  # type: ignore[override]
        return limited(self.text + other.text, self.kinds | other.kinds)

    @property
    def known(self) -> bool:
        """True if all of it is known."""
        return UNKNOWN not in self.text


NOTHING = Data()
#: Rule of a script that goes past a limit.
UNREAD = "RSK-hidden-command"


def limited(text: str, kinds: frozenset[str]) -> Data:
    """Return the data, or its beginning with the kind ``CUT``."""
    return Data(text, kinds) if len(text) <= MAX_LENGTH else Data(text[:MAX_LENGTH], kinds | {CUT})


def joined(parts: Sequence[Data]) -> Data:
    """Return the parts with spaces between them."""
    return limited(" ".join(one.text for one in parts), frozenset().union(*(one.kinds for one in parts)))


class CommandHit(NamedTuple):
    rule: str
    line: int


@dataclass(slots=True)
class _Redirections:
    """``targets`` are files that get the output; ``later`` are commands behind a here-document's first line."""

    stdin: Data
    targets: list[str] = field(default_factory=list)
    later: list[Node] = field(default_factory=list)
    to_network: bool = False


@dataclass(slots=True)
class Shell:
    """Evaluates one script; hits and snippets are of all texts within it."""

    #: Text of a file of the bundle, or None.
    read: Callable[[str], str | None] = lambda _: None
    hits: set[CommandHit] = field(default_factory=set)
    #: Code of other languages: (program, line, code).
    snippets: list[tuple[str, int, str]] = field(default_factory=list)
    #: Line of the present command.
    line: int = 1
    variables: dict[str, Data] = field(default_factory=lambda: {"IFS": Data(" "), "HOME": Data("~"), "0": Data("sh")})
    functions: dict[str, Node] = field(default_factory=dict)
    #: What was written to files, by path.
    files: dict[str, Data] = field(default_factory=dict)
    #: Descriptors that lead to the network.
    _sockets: set[str] = field(default_factory=set)
    #: A text of it has syntax that was not understood.
    is_broken: bool = False
    #: Functions that are being evaluated.
    _active: list[str] = field(default_factory=list)
    _steps: int = 0
    _depth: int = 0
    _first: int | None = 1

    # What ``commands`` defines

    def call(self, words: Sequence[Data], stdin: Data) -> Data:
        """Judge a simple command, and return its output."""
        raise NotImplementedError

    def content(self, path: str) -> Data:
        """Return what a file has."""
        raise NotImplementedError

    def write(self, path: str, content: Data) -> None:
        """Judge what is written to a file, and keep it."""
        raise NotImplementedError

    def send(self, data: Data) -> None:
        """Judge what is sent to the network."""
        raise NotImplementedError

    def assigned(self, name: str, value: Data) -> None:
        """Judge a variable."""
        raise NotImplementedError

    # Statements

    def run(self, text: str, line: int | None = 1, stdin: Data = NOTHING) -> Data:
        """Evaluate a script and return its output. ``line`` of its first line; None: all of it stands in this line."""
        if self._depth >= MAX_DEPTH:
            self.hit(UNREAD)
        if self._depth >= MAX_DEPTH or not text.strip():
            return NOTHING
        first, self._first = self._first, line
        self._depth += 1
        try:
            root = (
                Parser(_LANGUAGE)
                .parse(text.replace(UNKNOWN, _STAND_IN).encode(errors="replace")[:MAX_SCRIPT])
                .root_node
            )
            self.is_broken |= root.has_error and line is not None
            return self._statements(root, stdin)
        except RecursionError:
            self.hit("SAN-unparsable")
            return NOTHING
        finally:
            self._depth -= 1
            self._first = first

    def hit(self, rule: str) -> None:
        """Note a finding in the present line."""
        self.hits.add(CommandHit(rule, self.line))

    def call_function(self, name: str, arguments: Sequence[Data], stdin: Data) -> Data:
        """Evaluate a function of the script."""
        if name in self._active:
            return NOTHING  # its statements are judged where they are
        kept = self.variables
        own = {str(number): value for number, value in enumerate(arguments, 1)}
        self.variables = {**kept, **own, "@": joined(arguments), "*": joined(arguments)}
        self._active.append(name)
        try:
            return self._statement(self.functions[name], stdin)
        finally:
            self._active.pop()
            # Variables of a function are those of the script, but for its arguments.
            self.variables |= {key: kept[key] for key in own if key in kept}

    def _statements(self, node: Node, stdin: Data) -> Data:
        output = NOTHING
        for child in node.named_children:
            output += self._statement(child, stdin)
        return output

    def _statement(self, node: Node, stdin: Data) -> Data:  # noqa: C901, PLR0912 -- a branch a statement
        self._steps += 1
        if self._steps > MAX_STEPS:
            self.hit(UNREAD)
            return NOTHING
        if self._first is not None:
            self.line = self._first + node.start_point[0]
        match node.type:
            case "command":
                return self._command(node, stdin)
            case "list" if any(child.type == "||" for child in node.children):
                # Of alternatives the first that prints: ``command -v bash || command -v sh``.
                outputs = [self._statement(child, stdin) for child in node.named_children]
                return next((one for one in outputs if one.text or one.kinds), NOTHING)
            case "pipeline":
                for child in node.named_children:
                    stdin = self._statement(child, stdin)
                return stdin
            case "redirected_statement":
                return self._redirected(node, stdin)
            case "variable_assignment":
                self._assign(node)
            case "declaration_command":
                for child in node.named_children:
                    if child.type == "variable_assignment":
                        self._assign(child)
                if not node.named_children or _text(node).endswith(" -p"):
                    return Data(UNKNOWN, frozenset({places.ENVIRONMENT}))
            case "function_definition":
                name, body = node.child_by_field_name("name"), node.child_by_field_name("body")
                if name is not None and body is not None:
                    self.functions[_text(name)] = body
            case "for_statement":
                return self._for(node, stdin)
            case "case_item":
                output = NOTHING
                for child in node.named_children[1:]:
                    output += self._statement(child, stdin)
                return output
            case kind if kind in _PASSIVE:
                for child in node.named_children:
                    if child.type in ("command_substitution", "string"):
                        self._word(child)
            case _:
                return self._statements(node, stdin)
        return NOTHING

    def _for(self, node: Node, stdin: Data) -> Data:
        variable, body = node.child_by_field_name("variable"), node.child_by_field_name("body")
        values = [one for child in node.children_by_field_name("value") for one in self._words(child)]
        output = NOTHING
        for value in values or [Data(UNKNOWN)]:
            if variable is not None:
                self.variables[_text(variable)] = value
            if body is not None:
                output += self._statement(body, stdin)
        return output

    def _assign(self, node: Node) -> None:
        name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        if name is None:
            return
        key, data = _text(name), NOTHING if value is None else self._word(value)
        adds = _text(node)[len(key) : len(key) + 2] == "+="
        self.variables[key] = self.variables.get(key, NOTHING) + data if adds else data
        self.assigned(key, data)

    def _redirected(self, node: Node, stdin: Data) -> Data:
        body, to = node.child_by_field_name("body"), _Redirections(stdin)
        for redirect in node.named_children:
            if redirect.type == "file_redirect":
                self._redirect(redirect, to)
            elif redirect.type == "heredoc_redirect":
                self._here_document(redirect, to)
            elif redirect.type == "herestring_redirect" and redirect.named_children:
                to.stdin = self._word(redirect.named_children[-1])
        output = to.stdin if body is None else self._statement(body, to.stdin)
        if to.to_network:
            self.send(output)
        for target in to.targets:
            self.write(target, output)
        for one in to.later:
            output = self._statement(one, output)
        return NOTHING if to.targets else output

    def _here_document(self, node: Node, to: _Redirections) -> None:
        is_literal = _text(node.named_children[0])[:1] in "'\"\\"
        for child in node.named_children:
            if child.type == "heredoc_body":
                to.stdin = Data(_text(child)) if is_literal else self._parts(child)
            elif child.type == "file_redirect":
                self._redirect(child, to)
            elif child.type not in ("heredoc_start", "heredoc_end"):
                to.later.append(child)

    def _redirect(self, node: Node, to: _Redirections) -> None:
        operator = next((child.type for child in node.children if not child.is_named), ">")
        descriptor, where = node.child_by_field_name("descriptor"), self._destination(node).text
        number = _text(descriptor) if descriptor is not None else ""
        is_network = where.startswith(("/dev/tcp/", "/dev/udp/")) or (operator.endswith("&") and where in self._sockets)
        if is_network and number:
            self._sockets.add(number)
        if operator.startswith("<"):
            to.stdin = Data(UNKNOWN, frozenset({places.RECEIVED})) if is_network else self.content(where)
            to.to_network |= is_network and ">" in operator
        elif is_network:
            to.to_network = True
        elif number in ("", "1") and not (operator.endswith("&") and where.isdigit()):
            to.targets.append(where)

    def _destination(self, node: Node) -> Data:
        where = NOTHING
        for child in node.children_by_field_name("destination"):
            where += self._word(child)
        return where

    def _command(self, node: Node, stdin: Data) -> Data:
        words: list[Data] = []
        for child in node.children:
            if child.type == "variable_assignment":
                self._assign(child)
            elif child.type == "herestring_redirect":
                stdin = self._word(child.named_children[-1]) if child.named_children else stdin
            elif child.is_named:
                words += self._words(child)
        return self.call([one for one in words if one.text], stdin)

    # Words

    def _words(self, node: Node) -> list[Data]:
        """Return the words of an argument: an expansion without quotes is split."""
        data = self._word(node)
        if node.type in _QUOTED:
            return [data]
        return [Data(part, data.kinds) for part in data.text.split(" ") if part] or [data]

    def _word(self, node: Node) -> Data:  # noqa: C901 -- a branch a kind of word
        self._steps += 1
        if self._steps > MAX_STEPS:
            return Data(UNKNOWN)
        text = _text(node)
        match node.type:
            case "raw_string":
                return Data(text[1:-1])
            case "ansi_c_string":
                return Data(unescaped(text[2:-1]))
            case "string" | "translated_string":
                return self._parts(node, quoted=True)
            case "simple_expansion":
                return self._variable(text[1:])
            case "expansion":
                return self._expansion(node, text)
            case "command_substitution":
                first = node.named_children[0] if node.named_children else node
                output = self.content(self._destination(first).text) if first.type == "file_redirect" else NOTHING
                output += self._statements(node, NOTHING)
                return output._replace(text=output.text.rstrip("\n"))
            case "process_substitution":
                name = f"/dev/fd/{self._steps}"
                self.files[name] = self._statements(node, NOTHING)
                return Data(name)
            case "array":
                return joined([one for child in node.named_children for one in self._words(child)])
            case "arithmetic_expansion" | "arithmetic_expression":
                return Data(UNKNOWN)
            case kind if kind in _PLAIN and not node.named_children:
                return Data(re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL))
        return self._parts(node) if node.named_children else Data(text)

    def _parts(self, node: Node, *, quoted: bool = False) -> Data:
        """Return the parts of a word together, with the text between them."""
        source, at, data = node.text or b"", node.start_byte, NOTHING
        for child in node.named_children:
            between = _decoded(source[at - node.start_byte : child.start_byte - node.start_byte])
            data += Data(_bare(between, quoted=quoted))
            is_text = child.type in ("string_content", "heredoc_content")
            data += Data(_bare(_text(child), quoted=True)) if is_text else self._word(child)
            at = child.end_byte
        return data + Data(_bare(_decoded(source[at - node.start_byte :]), quoted=quoted))

    def _variable(self, name: str) -> Data:
        kinds = frozenset({VARIABLE} if _SECRET_NAME.search(name) else ())
        return self.variables.get(name, Data(UNKNOWN, kinds))

    def _expansion(self, node: Node, text: str) -> Data:
        if (found := _SLICE.fullmatch(text)) is not None:
            value, start = self.variables.get(found[1], Data(UNKNOWN)), int(found[2])
            return value._replace(text=value.text[start : start + int(found[3])] if found[3] else value.text[start:])
        if (found := _DEFAULT.fullmatch(text)) is not None and found[1] not in self.variables:
            return Data(found[2])
        name = next((child for child in node.named_children if child.type in _NAMES), None)
        if name is None or text.startswith("${#"):
            return Data(UNKNOWN)
        plain = _text(name).partition("[")[0]
        value = self._variable(plain)
        index, items = _text(name)[len(plain) :].strip("[]"), value.text.split()
        if index.isdigit() and int(index) < len(items):
            value = Data(items[int(index)], value.kinds)
        others = [child for child in node.named_children if child is not name and child.type != "variable_name"]
        if others and plain not in self.variables:
            return value + self._word(others[-1])
        changes = others and text[2 + len(plain) : 3 + len(plain)] in ("/", "#", "%", "^", ",")
        return Data(UNKNOWN, value.kinds) if changes else value


def unescaped(text: str) -> str:
    """Resolve the escapes of ``printf`` and ``$'…'``."""

    def value(found: re.Match[str]) -> str:
        octal, *hexadecimal, other = found.groups()
        digits = next((one for one in hexadecimal if one), None)
        if octal or digits:
            return chr(int(octal, 8) if octal else int(digits or "0", 16))
        return _ESCAPES.get(other, other if other in "\\'\"" else found[0])

    return _ESCAPE.sub(value, text)


def _text(node: Node) -> str:
    return _decoded(node.text or b"")


def _decoded(text: bytes) -> str:
    return text.decode(errors="replace").replace(_STAND_IN, UNKNOWN)


def _bare(text: str, *, quoted: bool) -> str:
    """Return a text between expansions without its quotes and escapes."""
    escaped = r'\\([\\$`"])' if quoted else r"\\(.)"
    return re.sub(escaped, r"\1", text.replace("\\\n", "").strip('"'))
