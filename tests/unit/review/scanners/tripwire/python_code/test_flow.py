"""The flow analysis: constants are folded, data is followed, and neither takes more than its bounds."""

from __future__ import annotations

import ast
import re
import sys
import time

import pytest

from builderd.review.scanners.tripwire import python_code
from builderd.review.scanners.tripwire.python_code import places
from builderd.review.scanners.tripwire.python_code.flow_rules import FlowRules, _runs, follow
from builderd.review.scanners.tripwire.python_code.values import MAX_LENGTH

FOLDED = {
    "'ex' + 'ec'": "exec",
    "''.join(['e', 'x'])": "ex",
    "'cexe'[::-1]": "exec",
    "'%s.%s' % ('os', 'system')": "os.system",
    "'{}.{}'.format('os', 'system')": "os.system",
    "f'{chr(111)}s'": "os",
    "''.join(chr(c ^ 1) for c in [110, 114])": "os",
    "''.join(map(chr, [111, 115]))": "os",
    "bytes.fromhex('6f73').decode()": "os",
    "__import__('base64').b64decode('b3M=').decode()": "os",
    "(lambda text: text[::-1])('so')": "os",
    "'o-s'.replace('-', '')": "os",
    "['a', 'os'][1]": "os",
    "'o' 's' * 1": "os",
}


def folded(code: str) -> tuple[object, ...]:
    tree = ast.parse(f"x = {code}\n")
    flow = FlowRules({"app.py": tree})
    flow.run()
    found = flow._program.tops["app.py"].get("x")
    return found.consts if found else ()


@pytest.mark.parametrize(("code", "text"), FOLDED.items(), ids=FOLDED)
def test_constant_is_folded(code: str, text: str) -> None:
    assert text in folded(code)


@pytest.mark.parametrize(
    "code",
    [
        "'a' * 10 ** 9",
        "'%999999999d' % 1",
        "1 << 10 ** 9",
        "list(range(10 ** 9))",
        "('a' * 20000).replace('', 'b' * 20000)",
        "__import__('codecs').decode(b'x', 'zlib')",
        "'a' * -1",
        "int('9' * 5000)",
    ],
)
def test_large_result_is_not_computed(code: str) -> None:
    begun = time.process_time()
    assert all(not isinstance(one, str | bytes) or len(one) <= MAX_LENGTH for one in folded(code))
    assert time.process_time() - begun < 5


def test_recursive_functions_end() -> None:
    code = "def f(x):\n    return f(x + 'a') + g(x)\ndef g(x):\n    return f(x) + f(x[::-1])\ny = f('a')\n" * 20
    assert follow({"app.py": ast.parse(code)}).hits == []


def test_endless_names_end() -> None:
    code = "a = a.b\n" * 200 + "s = 'x'\n" + "s = s + s\n" * 200
    assert follow({"app.py": ast.parse(code)}).hits == []


def test_path_goes_through_functions_and_files() -> None:
    files = {
        "app.py": "from lib import keep\nimport requests\nrequests.post('u', data=keep())\n",
        "lib.py": "import os\n\n\ndef keep():\n    return dict(os.environ)\n",
    }
    (hit,) = follow({path: ast.parse(code) for path, code in files.items()}).hits
    assert (hit.rule, hit.path, hit.line) == ("MAL-environment-sent", "app.py", 3)
    assert hit.trace == (("lib.py", 5), ("app.py", 3), ("app.py", 3))


def test_module_that_hides_a_name_of_the_bundle_is_followed() -> None:
    files = {
        "app.py": "import code\ncode.go()\n",
        "code.py": "def go():\n    getattr(__builtins__, 'ev' + 'al')('1')\n",
    }
    assert [hit.rule for hit in follow({path: ast.parse(code) for path, code in files.items()}).hits] == [
        "MAL-hidden-name"
    ]


def test_files_that_name_a_sink_are_followed_first() -> None:
    large = {f"m{number}.py": b"x = 1\n" * 3_000 for number in range(40)}
    sink = b"exec(code)\n" + b"y = 2\n" * 20_000
    followed = python_code.followed_files({**large, "sink.py": sink})
    assert followed[0] == "sink.py"
    assert sum(len({**large, "sink.py": sink}[path]) for path in followed) <= python_code.MAX_FOLLOWED


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python reads it")
@pytest.mark.parametrize(
    ("code", "newer"),
    [
        ("name = 'a'\nx = t'hello {name}'\n", True),
        ("try:\n    pass\nexcept ValueError, KeyError:\n    pass\n", True),
        ("def f(:\n", False),
        ("x = f(at'a')\n", False),
    ],
)
def test_syntax_of_a_newer_python_is_named(code: str, newer: bool) -> None:
    seen = python_code.analyse_all({"app.py": code.encode()}, ["app.py"])["app.py"]
    assert ("Python 3.14 reads this; apps run on Python 3.1" in seen["error"]) is newer


#: Texts whose repetition made a pattern search the rest of the text from each of them.
REPEATED = ("-r ", "sudo rm -r ", "(rm -r ", "-c rm -r -r ", "x", "AppData/", "curl ", ";a=b", "a/", "0x[", "chmod x")


@pytest.mark.parametrize("text", REPEATED)
@pytest.mark.parametrize("before", ["", "rm -r ", "tar x", "chmod "])
def test_long_command_is_searched_in_time_that_grows_with_its_length(before: str, text: str) -> None:
    command = (before + text * (20_000 // len(text))).ljust(20_000, "x")
    begun = time.process_time()
    for pattern in vars(places).values():
        if isinstance(pattern, re.Pattern):
            pattern.search(command)
    _runs("a.py", command)
    # 0.1 to 0.3 s; with a quadratic pattern 0.7 to 3 s.
    assert time.process_time() - begun < 0.6


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf *",
        "rm -f -r -v build ~",
        "sudo rm -rf a b ~/",
        "rm -rf build && rm -rf ~",
        "echo a\nrm -rf $HOME",
        "rm -rf \\\n  /home/*",
        "rm -rf a\\ b *",
    ],
)
def test_command_that_empties_a_home_is_found(command: str) -> None:
    assert places.DESTROYS.search(command)


@pytest.mark.parametrize(
    "command",
    ["rm -rf out && tar czf out.tgz *", "rm -rf dist; du -sh ~", "rm -rf tmp && df -h /", "rm -rf a\ndu -sh ~"],
)
def test_arguments_of_a_command_behind_a_deletion_are_not_its_own(command: str) -> None:
    assert not places.DESTROYS.search(command)


#: The last hands on what Solana's library calls a secret key.
KEYS_SENT = {
    "requests.post(url, json={'k': wallet.private_key})": True,
    "requests.post(url, headers={'x-session': mine.mnemonic})": True,
    "requests.post(url, headers={'Authorization': f'Bearer {api.private_key}'})": False,
    "requests.post(url, data={'secret': settings.secret_key})": False,
    "keypair = load()\nrequests.post(url, data={'secret': keypair.secret_key})": True,
}


@pytest.mark.parametrize(("code", "found"), KEYS_SENT.items(), ids=KEYS_SENT)
def test_key_of_a_wallet_is_not_sent_and_credential_of_an_api_is(code: str, found: bool) -> None:
    hits = follow({"app.py": ast.parse(f"import requests\n{code}\n")}).hits
    assert [hit.rule for hit in hits] == ["RSK-key-sent"] * found


def test_secret_key_in_a_field_that_is_a_long_number_is_read() -> None:
    tree = ast.parse(f"import requests\nrequests.post(u, json={{0x{'f' * 5000}: a.private_key}})\n")
    assert [hit.rule for hit in follow({"app.py": tree}).hits] == ["RSK-key-sent"]
