import pytest

from builderd.domain.entrypoints import Entry, entry_of, module_files

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
    assert entry_of(command, PATHS) == Entry((root,), known=True)


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
def test_a_file_that_is_not_there_is_told(command: str, missing: str) -> None:
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
def test_what_is_no_simple_command_is_not_judged(command: str) -> None:
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
    assert entry_of(command, PATHS) == Entry(roots, known=True)


def test_of_a_command_with_more_than_one_program_not_all_is_known() -> None:
    assert entry_of("cd src && python3 main.py", PATHS) == Entry(("main.py",), known=False)


def test_a_package_comes_before_its_module() -> None:
    assert list(module_files("pkg.web", PATHS)) == ["src/pkg/__init__.py", "src/pkg/web.py"]
