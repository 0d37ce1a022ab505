"""What `celery -A jobqueue` finds: the application of this process's settings."""

from jobqueue.application import make_app
from jobqueue.config import Settings
from jobqueue.errors import InvalidSetting

try:
    app = make_app(Settings())
except InvalidSetting as error:  # whatever else leaves here, Celery's command line shows with a traceback
    raise SystemExit(f"error: {error}") from None
