"""The changes feed over HTTP: requests, authorisation, feeds, and the server that carries them."""
