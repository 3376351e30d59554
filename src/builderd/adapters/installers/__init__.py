"""What turns a list of requirements into a layer."""
