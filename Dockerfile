# One image for the node, Flower and the command line.
ARG BASE=python:3.12-slim
FROM ${BASE} AS build
WORKDIR /src
COPY requirements/image.txt requirements/image.txt
RUN python -m venv /opt/jobqueue && /opt/jobqueue/bin/pip install --no-cache-dir --require-hashes -r requirements/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY jobqueue jobqueue
COPY workers workers
COPY producers producers
RUN /opt/jobqueue/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${BASE}
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/jobqueue jobqueue \
    # A volume that is mounted here takes its owner and mode from it.
    && install --directory --owner=jobqueue --mode=0700 /var/lib/jobqueue/keys
COPY --from=build /opt/jobqueue /opt/jobqueue
ENV PATH=/opt/jobqueue/bin:$PATH \
    JOBQUEUE_STATE_DIR=/var/lib/jobqueue/state \
    JOBQUEUE_CACHE_DIR=/var/lib/jobqueue/cache \
    JOBQUEUE_KEYS=/var/lib/jobqueue/keys
USER jobqueue
WORKDIR /var/lib/jobqueue
CMD ["celery", "-A", "jobqueue", "worker", "--loglevel", "INFO"]
