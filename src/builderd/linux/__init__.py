"""Linux system calls, processes, threads and atomic files, without any other part of the project."""
