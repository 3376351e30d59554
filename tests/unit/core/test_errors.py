"""Errors carry a machine word, a message, and what there is to look at."""

from __future__ import annotations

import errno

import pytest

from builderd.core import errors
from builderd.core.errors import (
    BackupFailed,
    BuilderdError,
    EngineUnavailable,
    MachineFault,
    NoCapacity,
    ValidationFailed,
    helper_died,
    is_by_machine,
    machine_fault,
)
from builderd.review.model import ReviewFailed

CODES = {
    *("bad_request", "unauthenticated", "forbidden", "not_found", "name_taken", "conflict", "invalid_state"),
    *("too_large", "validation_error", "rate_limited", "quota_exceeded"),
    *("review_failed", "install_failed", "build_failed", "release_failed", "start_failed", "qa_failed"),
    *("no_capacity", "engine_unavailable", "store_unavailable", "backup_failed", "precondition_failed"),
    *("machine_fault", "bundle_lost"),
}


def test_every_error_of_the_contract_has_a_code_of_its_own() -> None:
    found = [*vars(errors).values(), ReviewFailed]
    classes = [c for c in found if isinstance(c, type) and issubclass(c, BuilderdError)]
    # To a caller, a damaged record is a database that cannot be used.
    codes = [c.code for c in classes if c not in (BuilderdError, errors.StageFailed, errors.RecordDamaged)]
    assert len(set(codes)) == len(codes)
    assert set(codes) == CODES


def test_an_error_keeps_what_it_was_given() -> None:
    error = NoCapacity("The machine has no memory left.", data={"uuid": "x"}, retry_after=5)
    assert (str(error), error.data, error.retry_after) == (error.message, {"uuid": "x"}, 5)


def test_a_validation_error_sums_up_its_first_reason() -> None:
    one = ValidationFailed({"name": ["too long"]})
    assert (one.message, one.errors) == ("name: too long", {"name": ["too long"]})
    assert ValidationFailed({"a": ["b", "c"], "d": ["e"]}).message == "a: b (and 2 more)"
    assert ValidationFailed({"a": ["b"]}, "Give more.").message == "Give more."


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN],
)
def test_an_errno_of_the_machine_is_named_with_a_cure(number: int) -> None:
    fault = machine_fault(OSError(number, "its text", "/secret/path"))
    assert fault is not None
    assert errno.errorcode[number] in fault.message
    assert "Its operator can fix it: " in fault.message
    assert "secret" not in fault.message
    assert fault.retry_after


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(errno.ENOENT, "x"), PermissionError(errno.EACCES, "x"), OSError("no errno"), KeyError("x")],
)
def test_an_error_of_the_program_is_none(error: Exception) -> None:
    assert machine_fault(error) is None


def test_the_cause_counts() -> None:
    wrapped = RuntimeError("could not store it")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full")
    assert machine_fault(wrapped) is not None


def test_an_error_with_a_code_says_itself_what_it_is() -> None:
    full = NoCapacity("The builder's disk is full.")
    full.__cause__ = OSError(errno.EDQUOT, "quota")
    assert machine_fault(full) is None


def test_suppressed_context_of_an_error_counts_too() -> None:
    wrapped = RuntimeError("could not connect")
    wrapped.__context__ = OSError(errno.EMFILE, "too many")
    assert machine_fault(wrapped) is not None
    wrapped.__suppress_context__ = True
    assert machine_fault(wrapped) is not None


def test_memory_threads_and_helpers_are_of_the_machine() -> None:
    # CPython's words: Modules/_threadmodule.c
    assert machine_fault(RuntimeError("can't start new thread")) is not None
    assert machine_fault(MemoryError()) is not None
    died = helper_died("the scanner", "was killed")
    assert machine_fault(died) is died
    assert isinstance(died, MachineFault)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NoCapacity("full"), True),
        (EngineUnavailable("away"), True),
        (helper_died("restic", "was killed"), True),
        (OSError(errno.ENOSPC, "full"), True),
        (BackupFailed("damaged"), False),
        (KeyError("x"), False),
    ],
)
def test_full_machine_and_absent_engine_are_by_the_machine(error: Exception, expected: bool) -> None:
    assert is_by_machine(error) is expected
