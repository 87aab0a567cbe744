"""The signing key, the tokens signed with it, and how the next key follows."""
