"""Serving: the bundle, which holds all that a server needs, and the server."""
