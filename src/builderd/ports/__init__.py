"""What builderd needs from the world, as small protocols."""
