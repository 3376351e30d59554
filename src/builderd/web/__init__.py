"""The web pages: an interface of the service for people, rendered on the server and served on the API's port."""
