"""Backup repositories of restic: encrypted, deduplicated, on a disk of this machine or remote."""
