"""Own domains of builders: claims, checks of DNS, certificates and their renewal."""
