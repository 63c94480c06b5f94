"""The persistence layer: tasks with events, blobs, users, in SQLite or PostgreSQL."""
