"""The SSH gateway: sessions, sftp and port forwarding into sandboxes."""
