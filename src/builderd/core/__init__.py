"""What every noun shares: errors, ids, addresses, resources, the clock, periodic loops."""
