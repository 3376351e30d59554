"""Bundle stores: the files of versions, by hash."""
