"""What this project asks of a broker beyond what Celery asks."""
