"""QA testers of this machine: the service itself sends single requests, everything else runs in a jail."""
