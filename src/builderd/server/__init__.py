"""The HTTP server below the API: listener, bodies, answers, streams, request log."""
