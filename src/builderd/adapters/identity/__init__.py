"""Identity providers, with which people sign in to the web pages."""
