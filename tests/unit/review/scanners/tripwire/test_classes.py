"""Classes of harm, strings in other forms, and pickles."""

from __future__ import annotations

import base64
import pickle

import pytest

from builderd.review.scanners.tripwire import classes


def rules(path: str, text: str) -> set[str]:
    return {rule for rule, _ in classes.find(path, text)}


@pytest.mark.parametrize(
    "line",
    [
        "const k = 'con' + 'structor'; f[k]('return this')()",
        "$f = 'base64' . '_decode';",
        "name = bytes.fromhex('7379').decode(); getattr(os, '73797374656d')",
        "const n = Buffer.from('Y2hpbGRfcHJvY2Vzcw==', 'base64')",
        "look = getattr(socket, 'ofnirddateg'[::-1])",
        "f = '\\x65\\x78\\x65\\x63'",
        "String.fromCharCode(101, 120, 101, 99)",
        "m = %w[Ker nel]",
        "k = ['key', 'down'].join('')",
    ],
)
def test_dangerous_name_in_another_form_is_hidden(line: str) -> None:
    assert "MAL-hidden-name" in rules("app.rb", f"\n{line}\n")


@pytest.mark.parametrize("line", ["eval('1')", "names = ['ex', 'port']", "x = 'exec' + 'utor'", "# 'ev' + 'al'"])
def test_other_text_hides_nothing(line: str) -> None:
    assert not rules("app.py", line)


def test_parts_of_a_class_lie_near_each_other_also_in_a_long_line() -> None:
    decoded, run = "x = base64.b64decode(y)", "exec(x)"
    assert rules("a.py", f"{decoded}\n{run}") == {"RSK-decoded-run"}
    assert not rules("a.py", decoded + "\n" * 50 + run)
    assert not rules("a.js", f"{decoded};" + "a" * 5_000 + f";{run}")


def test_excuse_takes_a_class_back() -> None:
    fetched = "import urllib.request\nurllib.request.urlretrieve(u, p)\n{}os.chmod(p, 0o755)\nsubprocess.run([p])\n"
    assert rules("a.py", fetched.format("")) == {"RSK-fetched-run"}
    assert not rules("a.py", fetched.format("assert hashlib.sha256(open(p, 'rb').read()).hexdigest() == KNOWN\n"))


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("print(1)",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_that_runs_a_function_is_found_and_not_loaded(protocol: int) -> None:
    content = pickle.dumps({"weights": [1, 2], "bias": Runs()}, protocol)
    in_json = b'{"dense": "' + base64.b64encode(content) + b'"}'
    in_lines = base64.encodebytes(content)
    for path, blob in (("m.pkl", content), ("w.json", in_json), ("m.b64", in_lines)):
        found = set(classes.pickled(path, blob))
        assert found & {"builtins exec", "__builtin__ exec"} or (protocol < 2 and path != "m.pkl"), (path, found)


def test_pickle_of_data_runs_nothing() -> None:
    content = pickle.dumps({"weights": [1.5, 2.5], "names": {"os", "system"}})
    assert not list(classes.pickled("m.pkl", content))
    assert not list(classes.pickled("a.txt", b"classes of Y29sb3I= and others"))
