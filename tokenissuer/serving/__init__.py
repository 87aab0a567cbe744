"""`tokenissuer serve`: waitress on sockets, and the application that follows its files."""
