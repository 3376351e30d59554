"""The SDK. Import ``Builderd`` and ``AsyncBuilderd`` from ``builderd``."""
