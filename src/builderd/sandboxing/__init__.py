"""Jails for code that reads hostile input: reviews, unpacking of archives, QA's browsers, the archiver of disks.

A process of our own leaves the host by ``confinement``, and gives up its ``privileges`` and all system calls that
lead out, within resource limits. ``bubblewrap`` does the same for a program.
"""
