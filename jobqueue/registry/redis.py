"""The registry in Redis."""

from datetime import UTC, datetime, timedelta

from jobqueue.registry.base import Experiments, Leases, LiveLogs
from jobqueue.registry.calls import Calls
from jobqueue.registry.directory import Directory
from jobqueue.registry.ledger import Ledger
from jobqueue.registry.needs import Needs
from jobqueue.registry.pauses import Pauses
from jobqueue.registry.presence import Workers
from jobqueue.registry.redis_calls import RedisCalls
from jobqueue.registry.redis_client import RedisClient
from jobqueue.registry.redis_directory import RedisDirectory
from jobqueue.registry.redis_experiments import RedisExperiments
from jobqueue.registry.redis_leases import RedisLeases
from jobqueue.registry.redis_ledger import RedisLedger
from jobqueue.registry.redis_logs import RedisLiveLogs
from jobqueue.registry.redis_needs import RedisNeeds
from jobqueue.registry.redis_pauses import RedisPauses
from jobqueue.registry.redis_workers import RedisWorkers


class RedisRegistry:
    """`Registry` over one pool of connections, safe in threads and after a fork.

    Args:
        url: as `open_registry` takes it.

    Raises:
        InvalidSetting: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._client = RedisClient(url)
        self.leases: Leases = RedisLeases(self._client)
        self.experiments: Experiments = RedisExperiments(self._client)
        self.live_logs: LiveLogs = RedisLiveLogs(self._client)
        self.workers: Workers = RedisWorkers(self._client)
        self.ledger: Ledger = RedisLedger(self._client)
        self.needs: Needs = RedisNeeds(self._client)
        self.directory: Directory = RedisDirectory(self._client)
        self.calls: Calls = RedisCalls(self._client)
        self.pauses: Pauses = RedisPauses(self._client)

    def ping(self) -> datetime:
        """Return the server's time when Redis answers: to PING, because TIME is answered while data is still loaded."""
        _, (seconds, microseconds) = self._client.ask(("PING",), ("TIME",))
        return datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(microseconds))

    def close(self) -> None:
        """Close its connections."""
        self._client.close()
