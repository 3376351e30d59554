"""Record of the store that belongs to a data directory, kept on both sides: with another store all disks are lost.

``store.json`` in the data directory names the store's kind and its file system; ``service.json`` in the store's root
names the service. Stores that were made before either was written are taken as they are, and get both.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from builderd.adapters.engines.oci.storage.backing import Backing, Kind, folder_of, image_of
from builderd.domain.errors import EngineUnavailable
from builderd.linux.json_files import read_json, write_json

RECORD, MARK = "store.json", "service.json"


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """Record of a store. ``uuid`` of the btrfs file system; ``location``: its path when this was written."""

    kind: Kind
    uuid: str
    location: str


def refuse_another(data_dir: Path, backing: Backing) -> None:
    """Raise ``EngineUnavailable`` when the disks of this data directory lie in another store than this one.

    A store in the data directory that is gone is forgotten: its owner wants another one.
    """
    recorded = _recorded(data_dir)
    if recorded is None:
        _refuse_beside(data_dir, backing)
    elif recorded.kind is not Kind.DEVICE and not os.path.lexists(recorded.location):
        (data_dir / RECORD).unlink()
    elif (recorded.kind, recorded.uuid) != (backing.kind, backing.file_system()):
        raise _another(data_dir, recorded, backing)


def remember(data_dir: Path, backing: Backing) -> None:
    """Write the record, once the store is mounted."""
    record = StoreRecord(backing.kind, backing.file_system() or "", str(backing.location))
    if record != _recorded(data_dir):
        content = {"kind": record.kind, "uuid": record.uuid, "place": record.location}
        write_json(data_dir / RECORD, content, durable=True)


def claim_for(root: Path, instance: str, location: Path) -> None:
    """Write the service's id into the store. Raises ``EngineUnavailable`` when it belongs to another service."""
    found = read_json(root / MARK, f"It is in {location}: mount that, and remove the file.")
    if found is None:
        write_json(root / MARK, {"id": instance}, durable=True)
    elif found["id"] != instance:
        raise EngineUnavailable(
            f"{location} is the store of another service ({found['id']}; this one is {instance}). Name another one. If "
            f"that service is gone for good and this one is to have it, mount it and remove {MARK} from its root."
        )


def _recorded(data_dir: Path) -> StoreRecord | None:
    file = data_dir / RECORD
    found = read_json(file, "Remove it, once the settings name the store in which the disks lie.")
    if found is None:
        return None
    # A store in the data directory moves with it.
    locations = {Kind.FOLDER: folder_of(data_dir), Kind.IMAGE: image_of(data_dir), Kind.DEVICE: Path(found["place"])}
    kind = Kind(found["kind"])
    return StoreRecord(kind, found["uuid"], str(locations[kind]))


def _refuse_beside(data_dir: Path, backing: Backing) -> None:
    for location in (folder_of(data_dir), image_of(data_dir)):
        if location != backing.location and os.path.lexists(location):
            raise EngineUnavailable(f"The disks of this service lie in {location}. {_others(backing, location)}")


def _another(data_dir: Path, recorded: StoreRecord, backing: Backing) -> EngineUnavailable:
    record, location = data_dir / RECORD, Path(recorded.location)
    words = f"The disks of this service lie in {location} (btrfs {recorded.uuid})."
    if location == backing.location:
        return EngineUnavailable(
            f"{words} What is there now is another file system: bring back the right one, or remove {record} to go on "
            "with this one, without those disks."
        )
    mark = record if recorded.kind is Kind.DEVICE else location
    return EngineUnavailable(f"{words} {_others(backing, mark)}")


def _others(backing: Backing, mark: Path) -> str:
    """Return the remedy: without the file at ``mark``, the service takes another store."""
    return (
        f"{backing.location} is another store, without them: set store.device back to what it was. To enlarge or "
        f"move a store, see docs/storage.md. To begin with an empty one, in which apps come back from their backups or "
        f"begin anew, run 'builderd down' and remove {mark}."
    )
