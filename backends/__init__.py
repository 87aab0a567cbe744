"""The account sources that come with tokenissuer: plug-ins like anybody's."""
