"""What `celery -A jobqueue` finds: the application of this process's settings."""

from jobqueue.application import make_app
from jobqueue.config import Settings

app = make_app(Settings())
