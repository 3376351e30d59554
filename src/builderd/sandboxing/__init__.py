"""Jails for code that reads hostile input: reviews, unpacking of archives, QA's browsers, the archiver of disks.

A process of our own leaves the host by ``confinement``, gives up its ``privileges`` within resource limits and lets
``seccomp`` refuse the calls that lead out. ``bubblewrap`` does the same for a program.
"""
