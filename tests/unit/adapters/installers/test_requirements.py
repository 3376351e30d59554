"""A requirements file is read as pip would, line by line, and trusted in nothing."""

from __future__ import annotations

import pytest

from builderd.adapters.installers.requirements import MAX_BYTES, MAX_FILES, Request, read_request
from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.errors import InstallFailed

SHA = "sha256:" + "ab" * 32


def read(text: str | bytes, **others: str) -> Request:
    """``others`` are further files of the bundle; ``__`` in a name stands for a dot, ``_s_`` for a slash."""
    content = text.encode() if isinstance(text, str) else text
    files = [BundleFile("requirements.txt", content)]
    for name, value in others.items():
        files.append(BundleFile(name.replace("_s_", "/").replace("__", "."), value.encode()))
    return read_request(make_bundle(files))


@pytest.mark.parametrize(
    ("text", "requirements"),
    [
        ("flask", {"flask"}),
        ("flask\n\n# a comment\n  requests >= 2 , < 3  # why\n", {"flask", "requests<3,>=2"}),
        ("Flask\nflask\nFLASK", {"flask"}),
        ("zope_interface.Foo", {"zope-interface-foo"}),
        ("uvicorn[standard]==0.30", {"uvicorn[standard]==0.30"}),
        ("tomli; python_version<'3.11'", {'tomli; python_version < "3.11"'}),
        ("fla\\\nsk==3.0\\\n.0", {"flask==3.0.0"}),
        (f"flask==3 \\\n  --hash={SHA} \\\n  --hash={SHA}", {f"flask==3 --hash={SHA}"}),
        ("\ufeffflask\r\nrich\r\n", {"flask", "rich"}),
        ("", set()),
        ("# nothing\n\n", set()),
    ],
)
def test_packages_of_the_index_are_written_anew(text: str, requirements: set[str]) -> None:
    request = read(text)
    assert request.requirements == requirements
    assert not request.foreign
    assert request.empty is (not requirements)


def test_other_files_are_included_relative_to_the_one_that_names_them() -> None:
    request = read("-r reqs/all.txt\nflask", reqs_s_all__txt="-rmore.txt\n", reqs_s_more__txt="rich")
    assert request.requirements == {"flask", "rich"}
    assert set(request.files) == {"requirements.txt", "reqs/all.txt", "reqs/more.txt"}


def test_constraints_constrain_and_do_not_ask() -> None:
    request = read("flask\n-c pins.txt\n--constraint=pins.txt", pins__txt="werkzeug==3.0\n")
    assert request.requirements == {"flask"}
    assert request.constraints == {"werkzeug==3.0"}


def test_files_that_include_each_other_are_read_once() -> None:
    assert read("-r b.txt\nflask", b__txt="-r requirements.txt\nrich").requirements == {"flask", "rich"}


@pytest.mark.parametrize("option", ["--prefer-binary", "--only-binary=:all:", "--only-binary :all:"])
def test_options_that_say_what_is_done_anyway_change_nothing(option: str) -> None:
    assert not read(f"{option}\nflask").foreign


def test_options_of_the_whole_file_are_kept() -> None:
    request = read("--pre\n--require-hashes\nflask")
    assert request.prereleases
    assert request.require_hashes


@pytest.mark.parametrize(
    "line",
    [
        "https://files.example/evil-1.0-py3-none-any.whl",
        "HTTPS://files.example/evil-1.0.tar.gz",
        "evil @ https://files.example/evil-1.0-py3-none-any.whl",
        "evil@https://files.example/evil.zip ; python_version > '3'",
        "git+https://git.example/evil.git@main",
        "git+ssh://git@git.example/evil.git",
        "evil @ git+https://git.example/evil.git",
        "hg+http://hg.example/evil",
        "--index-url https://index.example/simple",
        "-i https://index.example/simple",
        "-ihttps://index.example/simple",
        "--extra-index-url=https://index.example/simple",
        "--find-links https://files.example/",
        "--trusted-host index.example",
        "--no-index",
        "--no-binary :all:",
        "--no-binary=flask",
    ],
)
def test_what_comes_from_elsewhere_or_must_be_built_is_marked(line: str) -> None:
    request = read(f"flask\n{line}")
    assert request.foreign
    assert not request.uses_files


@pytest.mark.parametrize(
    "line",
    [
        ".",
        "./lib",
        "./lib[extra]",
        "./wheels/a-1.0-py3-none-any.whl",
        "wheels/a-1.0-py3-none-any.whl",
        "a @ ./wheels/a-1.0-py3-none-any.whl",
        "--find-links ./wheels",
        "-f wheels/a-1.0-py3-none-any.whl",
    ],
)
def test_what_lies_among_the_builders_files_is_marked_as_such(line: str) -> None:
    files = {"lib_s_setup__py": "", "wheels_s_a-1__0-py3-none-any__whl": ""}
    request = read(line, **files)
    assert request.foreign
    assert request.uses_files


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-e .", "editable"),
        ("-e git+https://git.example/x.git", "editable"),
        ("--editable=./lib", "editable"),
        ("/etc/passwd", "outside"),
        ("/srv/a-1.0-py3-none-any.whl", "outside"),
        ("file:///etc/passwd", "outside"),
        ("evil @ file:///etc/passwd", "outside"),
        ("~/lib", "outside"),
        ("evil @ ~/lib", "outside"),
        ("evil @ nowhere", "not among"),
        ("evil@/etc", "outside"),
        ("../lib", "leads out"),
        ("./a/../../lib", "leads out"),
        ("./missing", "not among"),
        ("missing-1.0-py3-none-any.whl", "not among"),
        ("--find-links /srv", "outside"),
        ("-r ../../etc/passwd", "leads out"),
        ("-r /etc/passwd", "outside"),
        ("-r missing.txt", "not among"),
        ("-r https://files.example/r.txt", "from elsewhere"),
        ("-r", "one file"),
        ("-r a.txt b.txt", "one file"),
        ("-r 'a.txt", "one file"),
        ("--config-settings x=y", "not supported"),
        ("--python /bin/sh", "not supported"),
        ("--cache-dir /build", "not supported"),
        ("--", "not supported"),
        ("-", "not supported"),
        ("flask --global-option=x", "not supported"),
        ("flask --config-settings=x", "not supported"),
        ("flask==", "not a requirement"),
        ("flask\\", "not a requirement"),
        ("x" * 10_001, "longer"),
        ("flask three", "not a requirement"),
        ("$(reboot)", "not a requirement"),
        ("`id`", "not a requirement"),
        ("flask; rm -rf /", "not a requirement"),
        ("flask\0", "not a requirement"),
        ("--hash=sha256:00", "not supported"),
        ("import flask", "not a requirement"),
    ],
)
def test_what_has_no_place_in_a_layer_is_refused_with_its_line(line: str, why: str) -> None:
    with pytest.raises(InstallFailed, match=why) as caught:
        read(f"flask\n# two\n{line}\n")
    assert caught.value.message.startswith("requirements.txt, line 3: ")


def test_a_refusal_names_the_file_that_the_line_is_in() -> None:
    with pytest.raises(InstallFailed, match=r"^more\.txt, line 2: "):
        read("-r more.txt", more__txt="\n-e .")


def test_a_long_line_is_cut_in_the_message() -> None:
    with pytest.raises(InstallFailed) as caught:
        read("x " * 100_000)
    assert len(caught.value.message) < 400


def test_a_file_that_is_no_text_is_refused() -> None:
    with pytest.raises(InstallFailed, match="UTF-8"):
        read(b"flask\xff\xfe")


def test_more_than_anybody_writes_is_refused() -> None:
    with pytest.raises(InstallFailed, match="more than"):
        read("#" * (MAX_BYTES + 1))
    many = {f"f{n}__txt": f"-r f{n + 1}.txt" for n in range(MAX_FILES + 1)}
    with pytest.raises(InstallFailed, match="more than"):
        read("-r f0.txt", **many)


@pytest.mark.timeout(20)
def test_a_hostile_line_does_not_keep_the_reader_busy() -> None:
    for text in (" " * 900_000 + "x y", "a" * 900_000, "#" * 900_000, "\\\n" * 400_000, "flask " + "--hash=" * 100_000):
        try:
            read(text)
        except InstallFailed:
            continue
