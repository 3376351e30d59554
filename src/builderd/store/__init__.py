"""The store: all of builderd's records, on SQLite or PostgreSQL, behind one unit of work.

A unit of work is one transaction. Services get it from their caller; only an interface or the reconciler opens one,
by ``Store.write`` or ``Store.read``, and so commits. The functions run in a worker thread and must wait for nothing but
the store. The repositories of a unit of work are in files of their own, one for each noun.
"""

from builderd.store.store import Store, UnitOfWork

__all__ = ["Store", "UnitOfWork"]
