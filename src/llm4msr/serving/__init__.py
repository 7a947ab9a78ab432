"""The room of answers: a bundle that holds all a server needs, and the server."""
