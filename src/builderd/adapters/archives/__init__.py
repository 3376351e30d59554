"""Archives: where backups are kept."""
