"""Deployment under gunicorn."""
