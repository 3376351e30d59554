"""The archive that restic keeps: encrypted, deduplicated, on a disk of this machine or elsewhere."""
