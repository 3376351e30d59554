"""Build commands: the command that makes a project's final files, found where the project itself names one."""

from __future__ import annotations

import re

from builderd.domain.bundles import Bundle
from builderd.domain.entrypoints import PACKAGE
from builderd.domain.packages import MAX_BYTES, read_package

NPM_BUILD = "npm run build"
#: An entrypoint that builds at each start, as it had to before there was a build step.
_BUILDS = re.compile(r"\b(?:npm|yarn|pnpm|bun)\s+(?:run\s+)?build\b|\b(?:next|vite|astro|nuxt|nuxi)\s+build\b")


def find_build(bundle: Bundle, entrypoint: str) -> str:
    """Return the build command of the project: its ``package.json`` has a script ``build``. Empty without one.

    An entrypoint that builds by itself needs no other build.
    """
    file = bundle.file(PACKAGE)
    if file is None or file.size > MAX_BYTES or _BUILDS.search(entrypoint):
        return ""
    package = read_package(file.content)
    return NPM_BUILD if package is not None and package.has_build else ""
