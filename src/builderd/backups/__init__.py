"""Backups of disks, restores, drills that verify them, and the backup repository."""
