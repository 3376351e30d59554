"""Dependencies of apps: layers as the build cache, and their installers (pip, npm)."""
