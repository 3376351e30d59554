"""The world as it is: one family of adapters a port."""
