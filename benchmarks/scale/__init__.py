"""What many stored builders cost: ``script/bench scale``."""
