"""Errors carry a machine word, a message, and what there is to look at."""

from __future__ import annotations

from builderd.domain import errors
from builderd.domain.errors import BuilderdError, NoCapacity, ValidationFailed

CODES = {
    *("bad_request", "unauthenticated", "forbidden", "not_found", "name_taken", "conflict", "invalid_state"),
    *("too_large", "validation_error", "rate_limited", "quota_exceeded"),
    *("review_failed", "install_failed", "build_failed", "release_failed", "start_failed", "qa_failed"),
    *("no_capacity", "engine_unavailable", "store_unavailable", "backup_failed", "precondition_failed"),
    *("machine_fault", "bundle_lost"),
}


def test_every_error_of_the_contract_has_a_code_of_its_own() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, BuilderdError)]
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
