"""The bridge, the firewall, addresses, sockets."""
