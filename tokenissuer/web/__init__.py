"""HTTP: requests and answers, the client's address, and the WSGI application."""
