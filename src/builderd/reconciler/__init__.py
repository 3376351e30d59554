"""The reconciler brings builders to their desired state: claim, observe, step, record."""
