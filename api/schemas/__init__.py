"""The shapes of the HTTP interface; each knows how to become a job or be made from a result."""
