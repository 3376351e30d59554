"""The reconciler's loop: one worker a builder, its actions, and the sweep."""
