"""Implementation of the engine port; resources of one service on this machine; preflight checks."""
