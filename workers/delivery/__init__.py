"""What does Celery hand us?"""
