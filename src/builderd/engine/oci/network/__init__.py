"""Network of the sandboxes: bridge, firewall, addresses, sockets."""
