"""Settings for gunicorn: `gunicorn -c guni/conf.py`, or in a file of your own:

    from guni.conf import *

    workers = 8
    raw_env = ["STYLEGAN_TOML=/etc/stylegan/config.toml"]

Any number of workers shares the engines: a model is in memory once per device however many there are.
"""

wsgi_app = "main:app"
worker_class = "guni.worker.Worker"
workers = 2
bind = "127.0.0.1:8000"
backlog = 2048

# A worker that gets no CPU for so long is replaced. Requests may take longer: they wait in the event loop.
timeout = 60
# What a worker that leaves has to finish its requests; above the engine's deadline.
graceful_timeout = 75
keepalive = 5

# Workers are replaced now and then, not all at once; the engines stay.
max_requests = 100_000
max_requests_jitter = 10_000

# Each worker reads the TOML when it starts, so that HUP applies a changed one.
preload_app = False


def on_starting(server):
    """A mistake in the TOML ends gunicorn too, and with the status that `python main.py` ends with; see ``Worker.init_process``."""
    server.APP_LOAD_ERROR = 2


def when_ready(server):
    """HUP replaces the workers when their successors' models are loaded; with a broken TOML they stay."""
    from guni.reloading import Reloading

    server.handle_hup = Reloading(server)


def post_worker_init(worker):
    """`python -m api reload` finds gunicorn by what stands in tmp_dir; and gunicorn finds tmp_dir, also when the TOML is broken."""
    from api import presence
    from guni import reloading
    from main import config

    presence.appear(config.server.tmp_dir, worker.ppid)
    reloading.note(config.server.tmp_dir)


accesslog = None  # the application writes one with request ids
errorlog = "-"
loglevel = "info"
