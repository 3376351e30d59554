"""Where secrets are sealed before they are stored."""
