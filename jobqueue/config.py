"""Settings: the only reader of the environment and of `jobqueue.toml`."""

import difflib
import os
import stat
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from jobqueue.errors import InvalidSetting
from jobqueue.quantities import parse_duration, parse_size
from jobqueue.spec import MAX_PROJECT, is_name
from jobqueue.tls import Certificates, with_certificates

PREFIX = "JOBQUEUE_"
SETTINGS_FILE = "jobqueue.toml"


def _state_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "jobqueue"


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jobqueue"


def _words(value: object) -> object:
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _folder(value: object) -> object:
    return Path(value).expanduser().absolute() if isinstance(value, str | Path) else value


def _name(value: str) -> str:
    if not is_name(value, limit=MAX_PROJECT):
        raise ValueError(f"not a name: {value!r} (use letters, digits, - and _, at most {MAX_PROJECT})")
    return value


_Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
_PositiveDuration = Annotated[_Duration, Field(gt=timedelta(0))]
_Size = Annotated[int, BeforeValidator(parse_size)]
_Name = Annotated[str, AfterValidator(_name)]
_Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
_Folder = Annotated[Path, BeforeValidator(_folder)]


class Settings(BaseSettings):
    """What an operator or a user can set, as `JOBQUEUE_<NAME>` or in `jobqueue.toml`.

    A variable `JOBQUEUE_<NAME>_FILE` names a file whose content is the value, for secrets: a URL with a password.
    Arguments win over the environment, the environment over the file.

    Attributes:
        state_dir: what has to survive a restart: keys, the embedded broker's data, the default store.
        broker_url: `amqp[s]://`, `sqs://`, `redis[s]://`, `redis+socket://`; empty: the embedded one of `jobqueue dev`.
        registry_url: `redis[s]://`, `redis+socket://`; empty: the broker, when that is Redis.
        events_url: a Redis for Celery's events and remote control where the broker is SQS; empty: the registry.
        storage_url: `s3://bucket/prefix`, `file:///folder`; `granted:` on a node without credentials of the store, to
            which a clerk grants what it needs (`jobqueue grants serve`); empty: a folder in `state_dir`.
        storage_endpoint: of an S3 store other than Amazon's.
        tls_ca: the CAs that the certificates of all these servers are checked with, in PEM; empty: this machine's.
        tls_cert, tls_key: what is shown to servers that ask for a certificate, in PEM.
        keys: folder with a sub-folder for each role.
        keys_passphrase: that private keys are encrypted under; better as `JOBQUEUE_KEYS_PASSPHRASE_FILE`.
        weakest_suite: nothing is sealed with a weaker suite, and nothing that was is opened.
        published_for: how long a list of node keys that is signed here counts.
        runtime: what starts containers; `auto` takes the engine when one answers, else `process`.
        oci_runtime: the one of the engine's that containers are started with, such as `runsc`; empty: its default.
        accepted_gaps: what an engine may lack all the same; docs/nodes.md names them.
        probe_image: what tries the network `egress` from inside before an experiment gets it; it has a `python`.
        queues: what a worker consumes, by names and by patterns such as `lab_*` and `!lab_private_*`; empty: the
            project's CPU queue, its GPU queue for a slot with a device.
        queue_refresh: how often a node looks which queues its patterns find, and what waits in them.
        management_url: of RabbitMQ's HTTP API, `http://user:password@host:15672`; empty: at the broker's host.
        slot: what a worker serves of its machine: `cpu`, `gpu0`; empty: all of it.
        cpus, memory: how many cores and how much memory of a machine are for experiments; 0: all that is there.
        device_locks: where a machine's workers lock its devices; empty: `jobqueue-devices` beside `state_dir`.
        exit_when_idle: a worker ends once nothing has run on its node for so long; none: never.
        max_experiments: a worker ends once it has run so many; none: never.
        remote_control: whether workers obey Celery's remote control, which knows no senders: who may publish, may stop.
        lease: how long a worker may be silent before another one may take over.
        networks, images: what specs may ask of this node; an image pattern is a shell pattern.
        input_hosts: what `https://` inputs may be read from, such as `data.example.org,*.example.org`; empty: none.
        input_buckets: shell patterns of what `s3://` inputs may name beside the store's own bucket.
        input_timeout: how long one input may take to arrive from a host.
        cache_size: of the inputs and workspaces that a node keeps in `cache_dir` when nobody needs them.
        image_cache_size: of the images that a node has pulled; 0: all are kept.
        disk_floor: with less free in `cache_dir` a worker takes no message, and keeps nothing that nobody needs.
        grace: between SIGTERM and SIGKILL, for a container and for a draining worker.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        toml_file=SETTINGS_FILE,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
    )

    state_dir: _Folder = Field(default_factory=_state_folder)
    broker_url: str = Field(default="", repr=False)
    registry_url: str = Field(default="", repr=False)
    events_url: str = Field(default="", repr=False)
    storage_url: str = ""
    storage_endpoint: str = ""
    tls_ca: _Folder | None = None
    tls_cert: _Folder | None = None
    tls_key: _Folder | None = None
    project: _Name = "default"
    keys: _Folder | None = None
    keys_passphrase: str = Field(default="", min_length=1, validate_default=False, repr=False)
    weakest_suite: Literal["x25519", "mlkem768-x25519"] = "x25519"
    published_for: _PositiveDuration = timedelta(days=30)
    runtime: Literal["auto", "docker", "process"] = "auto"
    oci_runtime: str = ""
    accepted_gaps: _Words = ()
    probe_image: str = "python:3.12-alpine"
    queues: _Words = ()
    queue_refresh: _PositiveDuration = timedelta(seconds=3)
    management_url: str = Field(default="", repr=False)
    slot: str = ""
    cpus: Annotated[float, Field(ge=0, le=4096, allow_inf_nan=False)] = 0
    memory: _Size = 0
    device_locks: _Folder | None = None
    exit_when_idle: _PositiveDuration | None = None
    max_experiments: Annotated[int, Field(gt=0)] | None = None
    remote_control: bool = True
    lease: _PositiveDuration = timedelta(seconds=60)
    networks: _Words = ("none",)
    images: _Words = ("*",)
    input_hosts: _Words = ()
    input_buckets: _Words = ()
    input_timeout: _PositiveDuration = timedelta(hours=1)
    max_timeout: _PositiveDuration = timedelta(days=30)
    log_limit: _Size = 2 * 2**30
    cache_dir: _Folder = Field(default_factory=_cache_folder)
    cache_size: _Size = 50 * 2**30
    image_cache_size: _Size = 0
    disk_floor: _Size = 2**30
    grace: _Duration = timedelta(seconds=30)
    log_format: Literal["text", "json"] = "text"

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidSetting(_describe(error)) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise InvalidSetting(f"{SETTINGS_FILE} here cannot be read: {error}", hint="it is to be TOML") from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment, then `*_FILE` twins, then `jobqueue.toml`."""
        del dotenv_settings, file_secret_settings
        _refuse_strangers(Path(SETTINGS_FILE))
        return (
            init_settings,
            env_settings,
            _FileTwins(settings_cls),
            TomlConfigSettingsSource(settings_cls),
        )

    @property
    def embedded_socket(self) -> Path:
        """Where the embedded broker of `jobqueue dev` listens."""
        return self.state_dir / "dev" / "redis.sock"

    @property
    def broker(self) -> str:
        """The broker's URL, the embedded one by default."""
        return self._checked(self.broker_url) or f"redis+socket://{self.embedded_socket}"

    @property
    def registry(self) -> str:
        """The registry's URL.

        Raises:
            InvalidSetting: the broker is not Redis and no registry is named.
        """
        if self.registry_url:
            return self._checked(self.registry_url)
        if self.broker.startswith(("redis", "memory")):
            return self.broker
        raise InvalidSetting(
            "no registry is named, and the broker is not Redis",
            hint=f"set {PREFIX}REGISTRY_URL, as in redis://host:6379/0",
        )

    @property
    def events(self) -> str:
        """The URL of what carries Celery's events and remote control when the broker cannot; empty: nothing does."""
        return self._checked(self.events_url or self.registry_url)

    @property
    def storage(self) -> str:
        """The store's URL, a folder by default."""
        return self.storage_url or (self.state_dir / "store").as_uri()

    @property
    def store_endpoint(self) -> str:
        """The address of an S3 store other than Amazon's, with what its certificate is checked with."""
        return self._checked(self.storage_endpoint)

    @property
    def private_files(self) -> tuple[Path, ...]:
        """The files that secrets of these settings are read from, or may be: each `*_FILE`, a TLS key, this file."""
        twins = (os.environ.get(f"{PREFIX}{name.upper()}_FILE") for name in type(self).model_fields)
        return tuple(Path(path).absolute() for path in (*twins, self.tls_cert, self.tls_key, SETTINGS_FILE) if path)

    def _checked(self, url: str) -> str:
        ca, cert, key = (str(path or "") for path in (self.tls_ca, self.tls_cert, self.tls_key))
        return with_certificates(url, Certificates(ca=ca, cert=cert, key=key))

    @property
    def device_locks_dir(self) -> Path:
        """The folder of the devices' locks, the same for all services of a machine."""
        return self.device_locks or self.state_dir.parent / "jobqueue-devices"

    @property
    def keys_dir(self) -> Path:
        """The folder of keys."""
        return self.keys or self.state_dir / "keys"


def _refuse_strangers(file: Path) -> None:
    """Raise for settings that another user has put where everybody may, as in /tmp: they name servers and keys."""
    try:
        owner, folder = file.lstat().st_uid, file.absolute().parent.stat()
    except OSError:
        return
    if owner not in (0, os.geteuid()) and folder.st_mode & stat.S_IWOTH:
        told = f"{SETTINGS_FILE} here is another user's, in a folder where everybody may put files"
        raise InvalidSetting(told, hint="go elsewhere, or remove it")


class _FileTwins(PydanticBaseSettingsSource):
    """Reads `JOBQUEUE_<NAME>_FILE`: the file's content, stripped, is the value."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        del field
        variable = f"{PREFIX}{field_name.upper()}_FILE"
        path = os.environ.get(variable)
        if not path:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except OSError as error:
            raise InvalidSetting(f"{variable} names a file that cannot be read: {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InvalidSetting(f"{variable} names a file that is not text: {path}") from None

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


def misspelt_variables() -> dict[str, str]:
    """Return the variables that begin as settings do and are none, each with the close one or an empty text."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    named = sorted(name for name in os.environ if name.startswith(PREFIX))
    return {name: _close(name) for name in named if name.removesuffix("_FILE") not in known}


def _close(name: str) -> str:
    fields = [field.upper() for field in Settings.model_fields]
    close = difflib.get_close_matches(name.removeprefix(PREFIX), fields, n=1)
    return PREFIX + close[0] if close else ""


def _describe(error: ValidationError) -> str:
    lines = []
    for detail in error.errors(include_url=False, include_input=False):
        name = PREFIX + ".".join(str(part) for part in detail["loc"]).upper()
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            close = _close(name)
            message = "no such setting" + (f" (did you mean {close}?)" if close else "")
        lines.append(f"{name}: {message}")
    return "; ".join(lines)
