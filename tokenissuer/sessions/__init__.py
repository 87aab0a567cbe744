"""Refresh tokens, and where they are kept."""
