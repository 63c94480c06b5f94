"""The changes of the schema, oldest first; a published one is never edited."""
