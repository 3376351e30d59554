"""Jails for code that reads hostile input: reviews, unpacking of archives, QA's browsers, the archiver of disks.

``limits`` are resource limits, for a process of our own and for a program. A process of our own leaves the host by
``confinement``, gives up its ``privileges`` and lets ``seccomp`` refuse the calls that lead out. ``bubblewrap`` does
the same for a program.
"""
