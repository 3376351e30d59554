"""Ways in by SSH: a gateway that leads into sandboxes."""
