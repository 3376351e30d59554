"""The JSON shapes of the HTTP contract, shared by the server and the client."""
