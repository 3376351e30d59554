"""The database: all of builderd's records, on SQLite or PostgreSQL, behind one unit of work.

A unit of work is one transaction. Services get it from their caller; only an interface or the reconciler opens one,
by ``Store.write`` or ``Store.read``, and so commits. The functions run in a worker thread and must wait for nothing but
the store. The queries of each noun lie in its own folder.
"""
