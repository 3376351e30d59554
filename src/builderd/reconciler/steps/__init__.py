"""The reconciler's steps: each acts on engine and preview, idempotently and in no transaction; then it is recorded."""
