"""The engine that runs sandboxes: its port, on this machine (OCI) and on a cluster (Incus)."""
