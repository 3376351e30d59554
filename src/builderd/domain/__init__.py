"""Values and rules of builderd: pure, without I/O and without a clock."""
