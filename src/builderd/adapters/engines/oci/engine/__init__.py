"""The engine port's implementation, and what one service has on this machine."""
