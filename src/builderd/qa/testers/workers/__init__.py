"""Programs that run inside the jail; none imports builderd."""
