"""What `tokenissuer doctor` looks at: the chain from the registry to the account sources, as a client meets it."""
