from __future__ import annotations

import pytest

from builderd.code.entrypoints import (
    Entry,
    Package,
    entry_of,
    interpreted,
    module_files,
    read_package,
)
from builderd.code.model import BundleFile

PATHS = {"main.py", "src/pkg/__init__.py", "src/pkg/web.py", "server.js", "bin/run", "tool/__main__.py", "package.json"}


@pytest.mark.parametrize(
    ("command", "root"),
    [
        ("python3 main.py", "main.py"),
        ("python -u -X dev main.py --port $PORT", "main.py"),
        ("python3 main.py --port ${PORT:-8000}", "main.py"),
        ("/usr/bin/python3.13 ./main.py", "main.py"),
        ("FLAG=1 exec python3 /app/main.py", "main.py"),
        ("env A=b python3 main.py", "main.py"),
        ("node --enable-source-maps server.js", "server.js"),
        ("node -r dotenv/config server.js", "server.js"),
        ("./bin/run now", "bin/run"),
        ("python3 tool", "tool/__main__.py"),
    ],
)
def test_a_simple_command_starts_one_file(command: str, root: str) -> None:
    assert entry_of(command, PATHS) == Entry((root,), complete=True)


@pytest.mark.parametrize(
    ("command", "paths", "root"),
    [
        ("node .", {"index.js"}, "index.js"),
        ("node . --port 8000", {"index.js", "lib/start.cjs"}, "lib/start.cjs"),
        ("node ./", {"index.js", "lib/start.cjs"}, "lib/start.cjs"),
        ("node server", {"server.js", "server/index.js"}, "server.js"),
        ("node server", {"server/index.js"}, "server/index.js"),
        ("node --enable-source-maps src", {"src/index.mjs"}, "src/index.mjs"),
        ("tsx src/main", {"src/main.ts"}, "src/main.ts"),
        ("node --run start", {"package.json", "server.js"}, "package.json"),
        ("python3 .", {"__main__.py"}, "__main__.py"),
        ("python3 ./src/", {"src/__main__.py"}, "src/__main__.py"),
        ("bash -e run.sh", {"run.sh"}, "run.sh"),
    ],
)
def test_a_file_is_found_as_its_interpreter_finds_it(command: str, paths: set[str], root: str) -> None:
    packages = {"": Package("lib/start")}
    assert entry_of(command, paths, packages.get) == Entry((root,), complete=True)


def test_phps_web_server_is_started_with_an_address_and_runs_any_file() -> None:
    assert entry_of("php -S 0.0.0.0:8000 x.php", {"x.php", "y.php"}) == Entry(("x.php",), complete=False)
    assert entry_of("php -S 0.0.0.0:8000 -t public", {"public/y.php"}) == Entry(())
    assert entry_of("php -S 0.0.0.0:8000 x.php", {"y.php"}).missing == "x.php"


@pytest.mark.parametrize("command", ["node .", "node src", "python3 .", "python3 src", "bun src"])
def test_a_folder_in_which_nothing_is_found_is_not_judged(command: str) -> None:
    assert entry_of(command, {"src/app.txt"}) == Entry(())


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("python3 app.py", "app.py"),
        ("node ./index.js", "index.js"),
        ("./start.sh", "start.sh"),
        ("/app/run.sh", "run.sh"),
        ("python3 src/pkg/gone.py", "src/pkg/gone.py"),
    ],
)
def test_missing_entrypoint_file_is_reported(command: str, missing: str) -> None:
    assert entry_of(command, PATHS).missing == missing


@pytest.mark.parametrize(
    "command",
    [
        "cd src && python3 app.py",
        "python3 gen.py; python3 app.py",
        "python3 $SCRIPT",
        "python3 /opt/app.py",
        "python3 ../app.py",
        "python3 -m http.server $PORT",
        "python3 -c 'print(1)'",
        "bash -lc 'python3 app.py'",
        "node --run start",
        "node -e 'x()'",
        "node --eval 'x()'",
        "make run",
        "sh -c 'python3 app.py'",
        "deno run app.ts",
        "python3 'unclosed",
        "",
        "exec",
        "echo `cat app.py`",
    ],
)
def test_complex_command_is_not_checked(command: str) -> None:
    assert entry_of(command, PATHS).missing is None


@pytest.mark.parametrize(
    ("command", "roots"),
    [
        ("uvicorn main:app --host 0.0.0.0", ("main.py",)),
        ("gunicorn pkg.web:app", ("src/pkg/__init__.py", "src/pkg/web.py")),
        ("python3 -m pkg.web", ("src/pkg/__init__.py", "src/pkg/web.py")),
        ("npm start", ("package.json",)),
        ("streamlit run main.py", ("main.py",)),
    ],
)
def test_modules_and_arguments_are_looked_up(command: str, roots: tuple[str, ...]) -> None:
    assert entry_of(command, PATHS) == Entry(roots, complete=True)


def test_command_with_several_programs_is_incomplete() -> None:
    assert entry_of("cd src && python3 main.py", PATHS) == Entry(("main.py",), complete=False)


def test_a_package_comes_before_its_module() -> None:
    assert list(module_files("pkg.web", PATHS)) == ["src/pkg/__init__.py", "src/pkg/web.py"]


@pytest.mark.parametrize(
    ("command", "handed"),
    [
        ("python3 app.dat", [("app.dat", "python3")]),
        ("cd x && exec sh 'start' now", [("x/start", "sh")]),
        ("sh -c 'python3 -u app.dat'", [("app.dat", "python3")]),
        ("bash -lc './app.dat'", [("app.dat", "")]),
        (". ./app.dat; ./x/start", [("app.dat", "sh"), ("x/start", "")]),
        ("uv run python3 app\\.dat", [("app.dat", "python3")]),
        ("deno run --allow-net app.dat", [("app.dat", "deno")]),
        ("npm start", [("app.dat", "node")]),
        ("node --run start", [("app.dat", "node")]),
        ("datasette ./app.dat --port 8000", []),
        ("tool --data ./app.dat", []),
        ("uvicorn app:app --log-config x/start.json", []),
        ("python3 -m http.server", []),
    ],
)
def test_script_arguments_are_found_anywhere_in_a_command(command: str, handed: list[tuple[str, str]]) -> None:
    paths = {"app.dat", "x/start", "package.json"}
    packages = {"": Package(None, {"start": "node app.dat"})}
    assert list(interpreted(command, paths, packages.get)) == handed


def test_commands_of_a_folder_are_found_in_there_and_never_complete() -> None:
    paths = {"web/main.py", "web/package.json", "main.py", "web/build.js"}
    assert entry_of("cd web\nnpm run build\npython3 main.py", paths) == Entry(("web/package.json", "web/main.py"))
    assert entry_of("cd web\npython3 gone.py", paths) == Entry((), missing="web/gone.py")
    packages = {"web": Package(None, {"build": "node build.js"})}
    assert ("web/build.js", "node") in set(interpreted("cd web\nnpm start", paths, packages.get))


def test_package_file_names_the_folders_entry_and_its_scripts() -> None:
    content = b'{"main": "a.js", "scripts": {"start": "node a.js", "x": 1}}'
    assert read_package(BundleFile("package.json", content)) == Package("a.js", {"start": "node a.js"})
    assert read_package(BundleFile("package.json", b'{"main": ["a"], "scripts": []}')) == Package()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_unreadable_package_file_is_ignored(content: bytes) -> None:
    assert read_package(BundleFile("package.json", content)) is None
