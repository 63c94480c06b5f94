"""Every picture, kept: what is recorded of a picture, how it is made again, and how it leaves and comes back as a file."""
