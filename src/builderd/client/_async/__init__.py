"""The asynchronous client, and the source of the synchronous one: ``script/generate_client.py`` makes ``_sync``."""
