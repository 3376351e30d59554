"""Errors, ids, addresses, resources, the clock and periodic loops: all that the nouns share."""
