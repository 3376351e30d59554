"""The JSON shapes of version 1, shared by server and client."""
