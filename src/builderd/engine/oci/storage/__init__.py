"""The store: base, disks, layers, quotas."""
