"""The world as it is: one family a port, and no family knows another."""
