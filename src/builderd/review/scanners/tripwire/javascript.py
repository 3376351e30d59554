"""JavaScript: syntax check and syntax trees by Node.js without running any code, and references to other files."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from builderd.code.sources import References

#: Compiles each file as the kind of module that its ending says, or as either; nothing of it is executed. Acorn, which
#: is a part of Node.js, then gives the trees of files up to a size, in a short form.
CHECKER = Path(__file__).with_name("checker.js").read_text()
OPTIONS = (
    *("--experimental-vm-modules", "--no-warnings", "--max-old-space-size=512", "--no-addons", "--jitless"),
    # Its own parser is an internal module.
    "--expose-internals",
)

IMPORTS = re.compile(r"""\b(?:from\s*|import\s*\(?\s*|require(?:\.resolve)?\s*\(\s*)["'`](\.{1,2}/[^"'`\n]*)["'`]""")
STRINGS = re.compile(r"""["'`]([^"'`\n]{2,200})["'`]""")


def read_scripts(
    node: Sequence[str], folder: Path, files: Sequence[tuple[str, int]], followed: Sequence[int], seconds: float
) -> tuple[list[list[Any]], dict[int, Any] | None]:
    """Return the files that do not parse, each as [path, line, message, True for a syntax error], and the trees of
    those that are ``followed``: number of the file → ESTree in a short form; None where Node.js has no parser to lend.

    Raises ``OSError``, ``subprocess.SubprocessError`` or ``ValueError`` if Node.js fails.
    """
    done = subprocess.run(
        [*node, *OPTIONS, "-e", CHECKER],
        input=json.dumps({"folder": str(folder), "files": files, "followed": followed}).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"OPENSSL_CONF": "/dev/null"},
        timeout=seconds,
        check=True,
    )
    answer = json.loads(done.stdout)
    trees = None if answer["trees"] is None else {number: tree for number, tree in answer["trees"] if tree}
    return answer["problems"], trees


def references(text: str, basenames: Mapping[str, Sequence[str]]) -> References:
    """Return the relative imports of a script, and the files of the bundle whose names it contains."""
    names = {found[1].rpartition("/")[2] for found in STRINGS.finditer(text)}
    mentioned = {path for name in names for path in basenames.get(name, ())}
    return References(
        scripts=tuple(sorted({found[1] for found in IMPORTS.finditer(text)})),
        paths=tuple(sorted(mentioned)),
    )


Node = dict[str, Any]
N = TypeVar("N", bound=ast.AST)
_FUNCTIONS = ("FunctionDeclaration", "FunctionExpression", "ArrowFunctionExpression")
#: Without ``%``, which formats no texts in JavaScript.
_OPERATORS: dict[str, type[ast.operator]] = {
    "+": ast.Add,
    "-": ast.Sub,
    "*": ast.Mult,
    "^": ast.BitXor,
    "&": ast.BitAnd,
    "|": ast.BitOr,
    "<<": ast.LShift,
    ">>": ast.RShift,
}


def translate(program: Node) -> ast.Module:
    """Return the module. Raises ``KeyError``, ``TypeError`` or ``RecursionError`` if it is no such tree."""
    return ast.Module(_Translator().block(program["body"]), [])


class _Translator:
    def __init__(self) -> None:
        self._line = 1
        self._expressions: dict[str, Callable[[Node], Any]] = {
            "Identifier": lambda node: self._name(node["name"]),
            "Literal": self._literal,
            "TemplateLiteral": self._template,
            "TaggedTemplateExpression": lambda node: self.of(node["quasi"]),
            "MemberExpression": self._member,
            "CallExpression": self._call,
            "NewExpression": self._call,
            "ImportExpression": lambda node: self._required(self.of(node["source"])),
            "BinaryExpression": self._binary,
            "AssignmentExpression": self._assignment,
            "ObjectExpression": self._object,
            "ThisExpression": lambda node: self._name("this"),
            "Super": lambda node: self._name("super"),
            # Expressions in the place of Python's, which contain no statements.
            "ClassExpression": self._class,
            **dict.fromkeys(_FUNCTIONS, self._function),
        }

    # Statements

    def block(self, nodes: list[Node] | None) -> list[ast.stmt]:
        return [made for node in nodes or () if node for made in self._statement(node)]

    def _statement(self, node: Node) -> Iterator[ast.stmt]:  # noqa: C901 -- a branch a statement
        kind, self._line = node["t"], node.get("l", self._line)
        match kind:
            case "VariableDeclaration":
                for one in node["declarations"]:
                    if one.get("init"):
                        yield from self._bound(one["id"], self.of(one["init"]))
            case "FunctionDeclaration":
                yield self._function(node, "default")
            case "ClassDeclaration":
                yield self._class(node)
            case "ReturnStatement":
                yield self._at(ast.Return(self.of(node.get("argument"))))
            case "ExpressionStatement":
                yield self._at(ast.Expr(self.of(node["expression"])))
            case "ForOfStatement" | "ForInStatement":
                yield from self._loop(node)
            case "ImportDeclaration":
                yield from self._import(node)
            case "ExportNamedDeclaration" | "ExportDefaultDeclaration":
                yield from self._export(node)
            case _:
                yield from self._inside(node)

    def _inside(self, node: Node) -> Iterator[ast.stmt]:
        """Yield what is in a statement of any other kind: its blocks, and its expressions as statements."""
        for value in node.values():
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, dict) and child:
                    if child["t"].endswith(("Statement", "Declaration", "Clause", "Case", "Declarator")):
                        yield from self._statement(child)
                    elif not child["t"].endswith("Pattern"):
                        yield self._at(ast.Expr(self.of(child)))

    def _loop(self, node: Node) -> Iterator[ast.stmt]:
        left = node["left"]
        target = left["declarations"][0]["id"] if left["t"] == "VariableDeclaration" else left
        item = f"${self._line}"
        yield self._at(ast.For(self._name(item), self.of(node["right"]), [], []))
        yield from self._bound(target, self._name(item))
        yield from self.block([node["body"]])

    def _import(self, node: Node) -> Iterator[ast.stmt]:
        module = self._required(self.of(node["source"]))
        for one in node["specifiers"]:
            name = {"ImportDefaultSpecifier": "default", "ImportNamespaceSpecifier": ""}.get(one["t"])
            if name is None:
                name = str(one["imported"].get("name") or one["imported"].get("value"))
            value = self._at(ast.Attribute(module, name, ast.Load())) if name else module
            yield self._assign(self._name(one["local"]["name"]), value)
        if not node["specifiers"]:
            yield self._at(ast.Expr(module))

    def _export(self, node: Node) -> Iterator[ast.stmt]:
        declared = node.get("declaration")
        if declared is None:
            return
        if declared["t"].endswith("Declaration"):
            yield from self._statement(declared)
            name = (declared.get("id") or {}).get("name")
            if node["t"] == "ExportDefaultDeclaration" and name:
                yield self._assign(self._name("default"), self._name(name))
        else:
            yield self._assign(self._name("default"), self.of(declared))

    def _bound(self, pattern: Node, value: ast.expr) -> Iterator[ast.stmt]:
        """Yield assignments for a name, a member, or the parts of an object or array."""
        match pattern["t"]:
            case "ObjectPattern":
                for one in pattern["properties"]:
                    if one["t"] == "RestElement":
                        yield from self._bound(one["argument"], value)
                        continue
                    key = one["key"].get("name") or one["key"].get("value")
                    member = ast.Attribute(value, str(key), ast.Load())
                    yield from self._bound(one["value"], self._at(member))
            case "ArrayPattern":
                for number, one in enumerate(pattern["elements"]):
                    if one:
                        at = self._at(ast.Constant(number))
                        yield from self._bound(one, self._at(ast.Subscript(value, at, ast.Load())))
            case "AssignmentPattern":
                yield from self._bound(pattern["left"], value)
                yield from self._bound(pattern["left"], self.of(pattern["right"]))
            case "RestElement":
                yield from self._bound(pattern["argument"], value)
            case _:
                yield self._assign(self.of(pattern), value)

    # Functions and classes

    def _function(self, node: Node, name: str = "") -> ast.FunctionDef:
        """Return the function; ``name`` is that of one without its own."""
        line, name = node.get("l", self._line), (node.get("id") or {}).get("name", name)
        arguments, first = [], []
        for number, one in enumerate(node["params"]):
            simple = one["argument"] if one["t"] == "RestElement" else one
            parameter = simple["name"] if simple["t"] == "Identifier" else f"${line}.{number}"
            arguments.append(self._at(ast.arg(parameter)))
            if simple["t"] != "Identifier":
                first += list(self._bound(simple, self._name(parameter)))
        body = node["body"]
        if body["t"] == "BlockStatement":
            statements = [*first, *self.block(body["body"])]
        else:
            statements = [*first, self._at(ast.Return(self.of(body)))]
        self._line = line
        given = ast.arguments([], arguments, None, [], [], None, [])
        return self._at(ast.FunctionDef(name, given, statements, []))

    def _class(self, node: Node) -> ast.ClassDef:
        body: list[ast.stmt] = []
        for member in node["body"]["body"]:
            value, key = member.get("value"), (member.get("key") or {}).get("name", "")
            if member["t"] == "MethodDefinition":
                body.append(self._function(value, str(key)))
            elif member["t"] == "PropertyDefinition" and value:
                target = self._at(ast.Attribute(self._name("this"), str(key), ast.Load()))
                body.append(self._assign(target, self.of(value)))
            elif member["t"] == "StaticBlock":
                body += self.block(member["body"])
        name = (node.get("id") or {}).get("name", "default")
        return self._at(ast.ClassDef(name, [], [], body, []))

    # Expressions

    def of(self, node: Node | None) -> ast.expr:
        if not node:
            return self._at(ast.Constant(None))
        self._line = node.get("l", self._line)
        line = self._line
        translate_it = self._expressions.get(node["t"])
        made = translate_it(node) if translate_it else self._many(node)
        if hasattr(made, "lineno"):
            made.lineno = line
        return made

    def _many(self, node: Node) -> ast.expr:
        """Return an expression of any other kind: one of its parts, or all of them."""
        match node["t"]:
            case "ConditionalExpression":
                return self._at(ast.BoolOp(ast.Or(), [self.of(node["consequent"]), self.of(node["alternate"])]))
            case "LogicalExpression":
                return self._at(ast.BoolOp(ast.Or(), [self.of(node["left"]), self.of(node["right"])]))
            case "AwaitExpression" | "YieldExpression" | "SpreadElement":
                return self.of(node.get("argument"))
            case "ChainExpression" | "ParenthesizedExpression":
                return self.of(node["expression"])
            case "SequenceExpression":
                parts = [self.of(one) for one in node["expressions"]]
                # The value is the last one's; the others are there for what they do.
                last = self._at(ast.Constant(-1))
                return self._at(ast.Subscript(self._at(ast.Tuple(parts, ast.Load())), last, ast.Load()))
            case "ArrayExpression":
                return self._at(ast.List([self.of(one) for one in node["elements"] if one], ast.Load()))
            case "UnaryExpression" if node.get("operator") in ("typeof", "!", "delete", "void"):
                return self._at(ast.Compare(self.of(node["argument"]), [], []))
        found = [child for value in node.values() for child in (value if isinstance(value, list) else [value])]
        parts = [self.of(child) for child in found if isinstance(child, dict) and "t" in child]
        return self._at(ast.BoolOp(ast.Or(), parts)) if parts else self._at(ast.Constant(None))

    def _literal(self, node: Node) -> ast.expr:
        value = node.get("value")
        # A text with half of a surrogate pair is data.
        if isinstance(value, float):
            value = int(value) if value.is_integer() and abs(value) < 1 << 53 else None
        return self._at(ast.Constant(node.get("regex", value)))

    def _template(self, node: Node) -> ast.expr:
        parts: list[ast.expr] = []
        for number, text in enumerate(node["quasis"]):
            if text:
                parts.append(self._at(ast.Constant(text)))
            if number < len(node["expressions"]):
                value = self.of(node["expressions"][number])
                parts.append(self._at(ast.FormattedValue(value, -1)))
        return self._at(ast.JoinedStr(parts))

    def _member(self, node: Node) -> ast.expr:
        owner, key = self.of(node["object"]), node["property"]
        if node.get("computed"):
            return self._at(ast.Subscript(owner, self.of(key), ast.Load()))
        return self._at(ast.Attribute(owner, str(key.get("name", "")), ast.Load()))

    def _call(self, node: Node) -> ast.expr:
        called = self.of(node["callee"])
        return self._at(ast.Call(called, [self.of(one) for one in node["arguments"]], []))

    def _required(self, source: ast.expr) -> ast.expr:
        return self._at(ast.Call(self._name("require"), [source], []))

    def _binary(self, node: Node) -> ast.expr:
        left, right = self.of(node["left"]), self.of(node["right"])
        operator = _OPERATORS.get(node["operator"])
        if operator is None:
            return self._at(ast.Compare(left, [ast.Eq()], [right]))
        return self._at(ast.BinOp(left, operator(), right))

    def _assignment(self, node: Node) -> ast.expr:
        value = self.of(node["right"])
        left = node["left"]
        if left["t"] in ("ObjectPattern", "ArrayPattern"):
            target: ast.expr = self._name(f"${self._line}")
        else:
            target = self.of(left)
            if node["operator"] == "+=":
                value = self._at(ast.BinOp(target, ast.Add(), value))
        if left["t"] == "MemberExpression" and not left.get("computed"):
            # ``module.exports = x`` and ``exports.name = x`` give the file's names.
            owner, name = left["object"], str(left["property"].get("name", ""))
            nested = owner["t"] == "MemberExpression" and owner["object"].get("name") == "module"
            if owner.get("name") == "module" and name == "exports":
                value = self._at(ast.NamedExpr(self._name("default"), value))
            elif name and (nested or owner.get("name") == "exports"):
                value = self._at(ast.NamedExpr(self._name(name), value))
        return self._at(ast.NamedExpr(target, value))  # type: ignore[arg-type]

    def _object(self, node: Node) -> ast.expr:
        keys: list[ast.expr | None] = []
        values = []
        for one in node["properties"]:
            if one["t"] == "SpreadElement":
                keys.append(None)
                values.append(self.of(one["argument"]))
                continue
            key = one["key"]
            name = key.get("name") or key.get("value")
            keys.append(self.of(key) if one.get("computed") else self._at(ast.Constant(name)))
            values.append(self.of(one["value"]))
        return self._at(ast.Dict(keys, values))

    # Nodes

    def _name(self, name: str) -> ast.Name:
        return self._at(ast.Name(name, ast.Load()))

    def _assign(self, target: ast.expr, value: ast.expr) -> ast.Assign:
        return self._at(ast.Assign([target], value))

    def _at(self, node: N) -> N:
        node.lineno = self._line  # type: ignore[attr-defined]
        return node
