"""Alembic's folder: one file per change of the schema, run by ``api.store.schema``."""
