"""The routes: each turns a schema into jobs, has the server compute them, and answers."""
