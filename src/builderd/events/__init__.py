"""Events of builders: recorded, listed, followed and expired."""
