"""The engine on one machine: OCI runtimes under conmon."""
