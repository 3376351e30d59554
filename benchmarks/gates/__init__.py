"""What the review finds and misses, and what both gates cost: ``script/bench gates``."""
