"""Effects of calls: the kinds of data that they return, and what they put into files and containers."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from . import places
from .evaluation import is_request
from .flow import Flow
from .program import Scope
from .values import NOTHING, UNKNOWN, Value, carried, merge, stepped, tainted

#: Most names of files that one value is followed under.
MAX_FILES = 4


class Effects(Flow):
    """Knows what each call returns and keeps."""

    # What a call returns

    def _data(
        self, scope: Scope, call: ast.Call, names: Sequence[str], method: str, owner: Value, given: Sequence[Value]
    ) -> Value:
        if set(names) & places.CLEANERS or method in places.CLEANING_METHODS:
            return NOTHING
        through = merge(*map(carried, given), carried(owner))
        if through.has(places.KEY) and not _hands_key_on(names, method, owner):
            through = carried(through, places.KEY)
        if owner.has(places.ENVIRONMENT) and method in ("get", "pop", "setdefault"):
            through = merge(*map(carried, given), carried(owner, places.ENVIRONMENT))
        if method in ("encrypt", "update", "encryptor") and owner.names and through.has("content"):
            through = merge(through, tainted(places.ENCRYPTED, scope.path, call.lineno))
        kinds = [*self._sources(names, method, given), *self._read(names, method, owner, given)]
        if (
            isinstance(call.func, ast.Attribute)
            and method in places.REQUEST_PARTS
            and is_request(call.func.value, owner)
        ):
            kinds.append(places.REQUEST)
        if method == "join" and any(isinstance(n, ast.Name) and n.id == "chr" for a in call.args for n in ast.walk(a)):
            kinds.append(places.DECODED)
        found = merge(*(tainted(kind, scope.path, call.lineno) for kind in kinds))
        opened = self._opened(scope, call, names, method, owner)
        text = self._temporary(scope, call, names)
        return merge(found, through, opened, text)

    def _sources(self, names: Sequence[str], method: str, given: Sequence[Value]) -> Iterator[str]:
        known = set(names)
        if any(places.FETCHERS.match(name) for name in names):
            yield places.FETCHED
        if method in ("recv", "recvfrom", "recv_into"):
            yield places.RECEIVED
        if _reads_address(names, given):
            yield places.FETCHED
        if any(places.CLOUD_KEYS.match(name) for name in names):
            yield places.SECRET
        if method == "on" and any(places.SOCKETS.match(name) for name in names):
            yield places.RECEIVED
        groups = (
            (places.USERS, places.USER),
            (places.HOSTS, places.HOST),
            (places.CAPTURES, places.INPUT),
            (places.CLIPBOARDS, places.CLIPBOARD),
            (places.INPUTS, places.REQUEST),
        )
        yield from (kind for group, kind in groups if known & group)
        if (known & places.DECODERS) or method == "decrypt" or (known == {"Buffer.from"} and len(given) > 1):
            yield places.DECODED
        if known & places.PROCESSES:
            commands = [text for one in given[:1] for text in (*one.texts, " ".join(one.texts))]
            if any(places.SEARCHES_SECRETS.search(text) for text in commands):
                yield places.SECRET
            if any(places.WHOAMI.search(text) for text in commands):
                yield places.USER
                yield places.HOST

    def _read(self, names: Sequence[str], method: str, owner: Value, given: Sequence[Value]) -> Iterator[str]:
        """Yield the kinds that reading or listing the named files gives."""
        listed = bool(set(names) & places.LISTERS) or (method in places.LIST_METHODS and bool(owner.consts))
        reads = bool(set(names) & places.READERS) or method in places.READ_METHODS
        if not listed and not reads:
            return
        where = merge(*given[:1], Value(owner.consts, kinds=owner.kinds) if method else NOTHING)
        texts = where.texts
        secret = any(places.SECRET_FILES.search(text) for text in texts) or where.has(places.SECRET_PATH)
        if listed:
            patterns = [text for one in given for text in one.texts]
            secret = secret or any(places.SECRET_FILES.search(text) for text in patterns)
            yield places.LISTED_PATH
            if secret:
                yield places.SECRET_PATH
            if any(places.WIDE.match(text.partition("*")[0]) for text in texts):
                yield places.HOME_PATH
            return
        if secret or where.has(places.HOME_PATH):
            yield places.SECRET
        if where.has(places.LISTED_PATH):
            yield "content"
        if any(places.DOCUMENTS.search(text) for text in texts):
            yield places.DOCUMENT

    def _opened(self, scope: Scope, call: ast.Call, names: Sequence[str], method: str, owner: Value) -> Value:
        """Return an open file's names, and the kinds of data that were written to a file of that name."""
        reads = bool(set(names) & (places.READERS | places.OPENERS)) or method in ("read_text", "read_bytes", "open")
        if not reads:
            return NOTHING
        of_path = isinstance(call.func, ast.Attribute) and method in ("read_text", "read_bytes", "open")
        path = call.func.value if of_path and owner.consts else argument(call)  # type: ignore[attr-defined]
        value = self.of(scope, path)
        keys = list(self._keys(scope, path, value))
        kept = merge(*(self._files.get(key, NOTHING) for key in keys))
        opens = set(names) & places.OPENERS or method == "open"
        return merge(Value(names=tuple(f"opened:{key}" for key in keys) if opens else ()), carried(kept))

    def _temporary(self, scope: Scope, call: ast.Call, names: Sequence[str]) -> Value:
        if not any(name.startswith("tempfile.") for name in names):
            return NOTHING
        key = f"{UNKNOWN}{scope.path}:{call.lineno}"
        opens = any("TemporaryFile" in name for name in names)
        return Value((key,), names=(f"opened:{key}",) if opens else ())

    # What a call keeps

    def _store(
        self, scope: Scope, call: ast.Call, names: Sequence[str], method: str, owner: Value, given: Sequence[Value]
    ) -> None:
        kinds = merge(*map(carried, given))
        if method in places.MUTATORS and kinds is not NOTHING and isinstance(call.func, ast.Attribute):
            read = kinds
            if method in ("write", "add", "file", "writestr"):
                read = merge(kinds, self._data(scope, call, names, method, NOTHING, given))
            self._assign(scope, call.func.value, carried(stepped(read, scope.path, call.lineno)), local=False)
        for key, value in self._written(scope, call, names, method, owner, given):
            self._keep(scope, key, stepped(carried(value), scope.path, call.lineno))

    def _written(  # noqa: C901 -- a branch for each way of writing
        self, scope: Scope, call: ast.Call, names: Sequence[str], method: str, owner: Value, given: Sequence[Value]
    ) -> Iterator[tuple[str, Value]]:
        """Yield (file, what is written to it)."""
        if method in ("write", "writelines", "writestr", "add", "end") and given:
            read = merge(*given, self._data(scope, call, names, method, NOTHING, given))
            yield from ((key, read) for key in _opened_keys(owner))
        elif method in ("write_bytes", "write_text") and given and isinstance(call.func, ast.Attribute):
            yield from ((key, given[0]) for key in self._keys(scope, call.func.value, owner))
        elif method == "save" and given and owner.kinds:
            yield from ((key, owner) for key in self._keys(scope, argument(call), given[0]))
            self._assign(scope, argument(call) or call, carried(owner), local=False)
        elif method == "pipe" and given:
            yield from ((key, owner) for key in _opened_keys(given[0]))
        elif set(names) & places.WRITERS and len(given) > 1:
            yield from ((key, given[1]) for key in self._keys(scope, argument(call), given[0]))
        elif any(name.endswith((".copyfileobj", ".dump")) for name in names) and len(given) > 1:
            yield from ((key, given[0]) for key in _opened_keys(given[1]))
        elif any(name.endswith(("urlretrieve", "wget.download")) for name in names) and len(given) > 1:
            fetched = tainted(places.FETCHED, scope.path, call.lineno)
            yield from ((key, fetched) for key in self._keys(scope, argument(call, 1), given[1]))
        elif set(names) & places.PROCESSES and given:
            fetched = tainted(places.FETCHED, scope.path, call.lineno)
            for text in commands_of(given[0]):
                yield from ((_file(found[1]), fetched) for found in places.DOWNLOADS.finditer(text))
                yield from self._unpacked(text)
        elif "shutil.make_archive" in names and len(given) > 2:
            archived = self._data(scope, call, names, method, NOTHING, [given[2]])
            yield from ((f"{key}.zip", archived) for key in self._keys(scope, argument(call), given[0]))
        elif len(given) > 1 and any(name.startswith(("shutil.", "os.re", "fs.re", "fs.cop")) for name in names):
            sources = list(self._keys(scope, argument(call), given[0]))
            read = self._data(scope, call, names, method, NOTHING, given[:1])
            moved = merge(carried(given[0]), read, *(self._files.get(key, NOTHING) for key in sources))
            yield from ((key, moved) for key in self._keys(scope, argument(call, 1), given[1]))

    def _unpacked(self, text: str) -> Iterator[tuple[str, Value]]:
        """Yield the folder into which a command unpacks an archive, with what that holds."""
        for found in places.UNPACKS.finditer(text):
            kept = self._files.get(_file(found["archive"]), NOTHING)
            if found["folder"] and kept is not NOTHING:
                yield f"{_file(found['folder']).rstrip('/')}/", kept

    def _keep(self, scope: Scope, key: str, value: Value) -> None:
        known = self._files.get(key, NOTHING)
        joint = merge(known, value)
        self._note(scope, (joint.kinds or {}).keys() != (known.kinds or {}).keys())
        self._files[key] = joint

    def _keys(self, scope: Scope, node: ast.expr | None, value: Value) -> Iterator[str]:
        """Yield names under which a file is kept: its path, or else the variable that holds it."""
        texts = [text for text in value.texts if len(text.strip(UNKNOWN)) > 1][:MAX_FILES]
        yield from (_file(text) for text in texts)
        if not texts and isinstance(node, ast.Name | ast.Attribute):
            yield f"{scope.path}:{ast.dump(node)}"


def commands_of(value: Value) -> list[str]:
    """Return the command lines that a value may be: texts, and lists joined by spaces."""
    found = []
    for const in value.consts:
        if isinstance(const, tuple):
            found.append(" ".join(map(str, const)))
        elif isinstance(const, str):
            found.append(const)
    return found


def _hands_key_on(names: Sequence[str], method: str, owner: Value) -> bool:
    """Return True for a call that only writes a key in another form: a method of its own, or a known function."""
    of_own = owner.has(places.KEY) and method in places.KEY_METHODS
    return of_own or method in ("concat", "format", "join") or not places.KEY_CARRIERS.isdisjoint(names)


def _reads_address(names: Sequence[str], given: Sequence[Value]) -> bool:
    """Return True for a function that is handed an address of the web and is named as one that reads it."""
    return (
        bool(given)
        and any(places.ADDRESS_OF_WEB.match(text) for text in given[0].texts)
        and any(places.READS_ADDRESS.search(name) for name in names)
    )


def _opened_keys(value: Value) -> list[str]:
    return [name[7:] for name in value.names if name.startswith("opened:")]


def argument(call: ast.Call, number: int = 0) -> ast.expr | None:
    return call.args[number] if len(call.args) > number else None


def _file(text: str) -> str:
    return text.removeprefix("./").strip("'\"")
