"""Dependencies of a ``setup.py`` or ``setup.cfg`` are read without running it."""

from __future__ import annotations

import time

import pytest

from builderd.code.model import Bundle, BundleFile, make_bundle
from builderd.core.errors import InstallFailed
from builderd.core.ids import TenantId
from builderd.dependencies.installers.installers import UvInstaller
from builderd.dependencies.installers.project import MAX_BYTES, MAX_CFG_LINES, read_setup


def bundle(setup_py: str = "", setup_cfg: str = "", **more: str) -> Bundle:
    files = {"setup.py": setup_py, "setup.cfg": setup_cfg, **{f"{name}.txt": text for name, text in more.items()}}
    return make_bundle([BundleFile(name, text.encode()) for name, text in files.items() if text])


@pytest.mark.parametrize(
    "text",
    [
        "from setuptools import setup\nsetup(name='x', install_requires=['flask>=3', 'idna'])\n",
        "setup(\n    install_requires=[\n        'flask>='  # split\n        '3',\n        'idna',\n    ],\n    x=1)\n",
        "REQUIRES = ('flask>=3', r'idna',)\n\nsetup(name='x', install_requires=REQUIRES, zip_safe=False)\n",
        "install_requires = ['idna', 'flask>=3']\nsetup(install_requires=install_requires)\n",
        "deps = ['idna', 'flask>=3']\nsetup(install_requires=deps, tests_require=deps + ['x'])\nprint(deps)\n",
        "deps = ['idna', 'flask>=3']\nmake(deps=deps)\nsetup(install_requires=deps)\n",
        "# install_requires are few\nsetup(install_requires=['idna', 'flask>=3'])",
    ],
)
def test_plain_list_of_setup_py_is_read(text: str) -> None:
    found = read_setup(bundle(text))
    assert found is not None
    assert (found.lines, found.constraints, found.foreign) == (("flask>=3", "idna"), (), False)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("setup(install_requires=open('r.txt').read().split())", "is no list"),
        ("setup(install_requires=read())", "is no list"),
        ("setup(install_requires=['a'] + MORE)", "not a plain list"),
        ("setup(install_requires=['a', B])", "has more than texts"),
        ("setup(install_requires=[f'a{x}'])", "not a plain list"),
        ("setup(install_requires=[b'a'])", "has more than texts"),
        ("setup(install_requires=['a'.upper()])", "not a plain list"),
        ("def f():\n    deps = ['a']\nsetup(install_requires=deps)", "deps is assigned 0 times"),
        ("deps = ['a']\ndeps = []\nsetup(install_requires=deps)", "deps is assigned 2 times"),
        ("deps = ['a']\ndeps.append('b')\nsetup(install_requires=deps)", "deps is changed in line 2"),
        ("deps = ['a']\n\ndeps.extend(read())\nsetup(install_requires=deps)", "deps is changed in line 3"),
        ("deps = ['a']\nif X:\n    deps += ['b']\nsetup(install_requires=deps)", "deps is changed in line 3"),
        ("deps = ['a']\ndeps *= 2\nsetup(install_requires=deps)", "deps is changed in line 2"),
        ("deps = ['a']\ndeps[0] = 'b'\nsetup(install_requires=deps)", "deps is changed in line 2"),
        ("deps = ['a']\nif X:\n    deps = ['b']\nsetup(install_requires=deps)", "deps is changed in line 3"),
        ("deps = ['a']\nx = deps = ['b']\nsetup(install_requires=deps)", "deps is changed in line 2"),
        ("deps = ['a']\nif (deps := ['b']):\n    setup(install_requires=deps)", "deps is changed in line 2"),
        ("deps = ['a']\nwith open('x') as deps:\n    setup(install_requires=deps)", "deps is changed in line 2"),
        ("install_requires = ['a']\ninstall_requires += ['b']\nsetup(**locals())", "changed in line 2"),
        (
            "install_requires = ['a']\ninstall_requires.append('b')\nsetup(install_requires=install_requires)",
            "install_requires is changed in line 2",
        ),
        ("setup(install_requires=['a'])\nsetup(install_requires=['b'])", "given 2 times"),
        ("setup(**{'install_requires': ['a']})", "given 0 times"),
        ("setup(install_requires=", "is not Python"),
        ("setup(install_requires=['a'", "is not Python"),
        ("install_requires=", "is not Python"),
    ],
)
def test_computed_list_is_refused_with_the_cure(text: str, why: str) -> None:
    with pytest.raises(InstallFailed, match=r"setup\.py.*") as refused:
        read_setup(bundle(text))
    assert why in str(refused.value)
    assert "is not Python" in why or "list them in requirements.txt" in str(refused.value)


def test_setup_without_dependencies_needs_none() -> None:
    assert read_setup(bundle("setup(name='x')  # no install_requires\n", "[metadata]\nname = x\n")) is None
    assert read_setup(bundle("setup(install_requires=" + "\x0c" * 5_000 + "[])")) is None
    assert read_setup(bundle()) is None


def test_list_of_setup_cfg_is_read() -> None:
    listed = "    flask>=3  # the server\n    # nothing\n    idna; python_version > '3'\n"
    cfg = f"[metadata]\nname = x\n[options]\ninstall_requires =\n{listed}"
    found = read_setup(bundle("from setuptools import setup\nsetup()\n", cfg))
    assert found is not None
    assert found.lines == ("flask>=3", 'idna; python_version > "3"')
    with pytest.raises(InstallFailed, match="list them in requirements"):
        read_setup(bundle("", "[options]\ninstall_requires = file: needs.in\n"))
    with pytest.raises(InstallFailed, match=r"setup\.cfg is not readable"):
        read_setup(bundle("", "no section\n"))


def test_code_from_elsewhere_is_foreign_and_a_path_is_refused() -> None:
    found = read_setup(bundle("setup(install_requires=['x @ git+https://example.com/x'])"))
    assert found is not None
    assert found.foreign
    for text in ("../x", "file:///etc", "x @ file:///etc", "--index-url=https://example.com", "x\\n--pre"):
        with pytest.raises(InstallFailed, match=r"setup\.py: install_requires"):
            read_setup(bundle(f"setup(install_requires=['{text}'])"))


def test_texts_without_commas_are_joined_in_time_of_their_length() -> None:
    found = read_setup(bundle("setup(install_requires=[" + "'a' " * 20_000 + "])"))
    assert found is not None
    assert found.lines == ("a" * 20_000,)


def test_requirements_go_before_setup_py() -> None:
    installer, tenant = UvInstaller("1"), TenantId("acme")
    setup = "setup(install_requires=['idna'])"
    alone = installer.plan(bundle(setup), "base", tenant)
    assert alone is not None
    assert alone.inputs == {"requirements.txt": b"idna\n"}
    assert not alone.runs_foreign_code
    both = installer.plan(bundle(setup, requirements="flask\n"), "base", tenant)
    assert both is not None
    assert both.inputs == {"requirements.txt": b"flask\n"}


@pytest.mark.parametrize(
    "attack",
    [
        "[" * 30_000,
        "(" * 30_000 + ")" * 30_000,
        "-" * 60_000 + "1",
        "x" + ".x" * 30_000,
        "['a'" + ", 'a'" * 15_000 + "]",
        "lambda:" * 12_000 + "0",
        "f'{" * 20_000,
        "'\\N{x}'",
        "['\\N{x}']",
        "['\\ud800']",
        "[\0'a'\0]",
    ],
)
def test_hostile_setup_py_ends_in_a_message(attack: str) -> None:
    with pytest.raises(InstallFailed, match=r"^setup\.py") as refused:
        read_setup(bundle(f"setup(install_requires={attack})"))
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "attack",
    [
        *(
            f"[options]\na{blank * (99_000 // len(blank.encode()))}b\n"
            for blank in (" ", "\t", "\r", "\x0b", "\x1c \x85", "\u2003")
        ),
        "[options]\n" + "y\n" * MAX_CFG_LINES,
        "[options]\n" + "y\n" * 49_000,
        "[options]\n" + "=" * 99_000,
        "[options]\n" + "[" * 99_000,
        "[" * 99_000,
        " " * 99_000 + "x",
        "[options]\ninstall_requires = file:" + "x" * 90_000,
        "[options]\ninstall_requires = " + "-" * 90_000,
    ],
)
def test_hostile_setup_cfg_ends_in_a_message_in_time_of_its_length(attack: str) -> None:
    begun = time.process_time()
    with pytest.raises(InstallFailed, match=r"^setup\.cfg") as refused:
        read_setup(bundle("", attack))
    assert len(str(refused.value)) < 500
    # The runs of blanks took a minute.
    assert time.process_time() - begun < 5


def test_blanks_at_the_beginning_of_lines_keep_their_meaning() -> None:
    cfg = "[options]\ninstall_requires   =  \n        idna   >=  3\n\n    flask\nname    =   x\n"
    found = read_setup(bundle("", cfg))
    assert found is not None
    assert found.lines == ("flask", "idna>=3")


def test_large_files_are_refused() -> None:
    with pytest.raises(InstallFailed, match="at most 100000 are read"):
        read_setup(bundle("#" * (MAX_BYTES + 1)))
    with pytest.raises(InstallFailed, match="at most 2000 dependencies"):
        read_setup(bundle("setup(install_requires=[" + "'a'," * 3_000 + "])"))
