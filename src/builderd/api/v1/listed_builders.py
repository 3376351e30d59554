"""Builders of a list as JSON text, by one template and without a model of each: a page has up to a hundred."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from json.encoder import encode_basestring as quoted

from builderd.api.v1.presenters import shown_token
from builderd.domain.prices import Cost
from builderd.domain.resources import Resources
from builderd.ports.store.builder_lists import ListedDocuments, ListedFields
from builderd.services.builder_lists import ListEntry

_BOOLEANS: Mapping[bool | None, str] = {None: "null", False: "false", True: "true"}


def encode_page(entries: Iterable[ListEntry], *, with_token: bool) -> Sequence[str]:
    """Return each entry as ``present_builder`` shows the builder; its service token in full only ``with_token``."""
    amounts, sizes = _Amounts(), _Sizes()
    return [_encode(entry, amounts, sizes, with_token=with_token) for entry in entries]


class _Amounts(dict[Decimal, str]):
    """Text of each amount of a page: rates and costs, which are often the same."""

    def __missing__(self, amount: Decimal) -> str:
        return self.setdefault(amount, repr(float(amount)))


class _Sizes(dict[Resources, str]):
    """Text of the resources of a page's builders, of which most have the same."""

    def __missing__(self, of: Resources) -> str:
        text = f'{{"cpu":{float(of.cpu)!r},"memory":{float(of.memory)!r},"disk":{float(of.disk)!r}}}'
        return self.setdefault(of, text)


def _encode(entry: ListEntry, amounts: _Amounts, sizes: _Sizes, *, with_token: bool) -> str:
    builder = entry.builder
    return (
        f'{{"uuid":"{builder.id}",{_fields(builder.fields)},"preview_url":{quoted(entry.preview_url)},'
        f'"service_token":{quoted(shown_token(builder.service_token, in_full=with_token))},'
        f'"resources":{sizes[builder.resources]},"needs_restart":{_BOOLEANS[entry.needs_restart]},'
        f'"review_passed":{_BOOLEANS[entry.review_passed]},"cost":{_cost(entry.cost, amounts)},'
        f"{_documents(builder.documents)}}}"
    )


def _cost(cost: Cost, amounts: _Amounts) -> str:
    return (
        f'{{"currency":{quoted(cost.currency)},"hourly_rate":{amounts[cost.hourly_rate]},'
        f'"runtime_hours":{amounts[cost.runtime_hours]},"cost":{amounts[cost.cost]}}}'
    )


def _documents(documents: ListedDocuments) -> str:
    """Return the documents, which are JSON text already."""
    env, env_file_values, credentials = documents
    return f'"env":{env},"env_file_values":{env_file_values},"credentials":{credentials}'


def _fields(fields: ListedFields) -> str:
    (
        name,
        status,
        job_type,
        visibility,
        auto_stop_interval,
        backup_interval_hours,
        status_reason,
        version,
        exit_code,
        entrypoint,
        port,
        isolation,
        require_qa,
        install_scripts,
        build,
        release,
        start_timeout,
        protocol,
        root,
        env_file,
        qa_passed,
        created_at,
        updated_at,
        last_active_at,
        disk_released_at,
        last_backup_at,
        last_backup_error,
        member,
    ) = fields
    return (
        f'"name":{quoted(name)},"status":"{status}","job_type":"{job_type}","visibility":"{visibility}",'
        f'"auto_stop_interval":{auto_stop_interval},"backup_interval_hours":{backup_interval_hours},'
        f'"status_reason":{quoted(status_reason)},"version":{version},'
        f'"exit_code":{"null" if exit_code is None else exit_code},"entrypoint":{quoted(entrypoint)},"port":{port},'
        f'"isolation":"{isolation}","require_qa":{"true" if require_qa else "false"},'
        f'"install_scripts":{"true" if install_scripts else "false"},"build":{quoted(build)},'
        f'"release":{quoted(release)},"start_timeout":{start_timeout},"protocol":"{protocol}","root":{quoted(root)},'
        f'"env_file":{quoted(env_file)},"qa_passed":{_BOOLEANS[qa_passed]},'
        f'"created_at":"{created_at}","updated_at":"{updated_at}","last_active_at":{_time(last_active_at)},'
        f'"disk_released_at":{_time(disk_released_at)},"last_backup_at":{_time(last_backup_at)},'
        f'"last_backup_error":{"null" if last_backup_error is None else quoted(last_backup_error)},'
        f'"member":{quoted(member)}'
    )


def _time(time: str | None) -> str:
    return "null" if time is None else f'"{time}"'
