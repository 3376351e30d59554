"""Generated from ``_async`` by ``script/generate_client.py``: change that."""
