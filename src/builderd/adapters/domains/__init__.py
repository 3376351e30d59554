"""Name servers, the challenge probe and the certificate authority of custom domains."""
