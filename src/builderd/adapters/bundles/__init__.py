"""Where the files of a version are kept, under their hash."""
