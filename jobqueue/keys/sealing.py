"""Sealing pairs, HPKE (RFC 9180), hybrid with ML-KEM by default: a node's for specs, an experimenter's for reports."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from jobqueue.errors import KeyRefused, Undecryptable
from jobqueue.ids import KeyId
from jobqueue.keys.lines import KeyLine, fingerprint, write_line

_X25519_BYTES = 32
_MLKEM_SEED_BYTES = 64
_MLKEM_PUBLIC_BYTES = 1184

_PublicHandle = X25519PublicKey | hpke.MLKEM768X25519PublicKey
_PrivateHandle = X25519PrivateKey | hpke.MLKEM768X25519PrivateKey


class Suite(IntEnum):
    """What is sealed with, each with HKDF-SHA256 and AES-256-GCM; a higher number is a stronger suite."""

    X25519 = 1
    MLKEM768_X25519 = 2

    @property
    def word(self) -> str:
        """Its name in settings and in keys."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def of(cls, word: str) -> "Suite":
        """Return the suite with this name."""
        return cls[word.upper().replace("-", "_")]


class Reader(StrEnum):
    """For whom is sealed: a node reads specs, with `reporting` reports are read. Never one in place of the other."""

    NODE = "node"
    REPORTING = "reporting"

    def kind(self, suite: Suite) -> str:
        """Return the word for its public keys in their text form."""
        return f"{self.value}-{suite.word}"

    def private_kind(self, suite: Suite) -> str:
        """Return the word for its private keys in their text form."""
        return f"{self.kind(suite)}-private"


_HPKE: Final = {
    Suite.X25519: hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
    Suite.MLKEM768_X25519: hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
}


@dataclass(frozen=True, kw_only=True)
class SealingPublicKey:
    """What is sealed to: the ML-KEM part, if any, then the X25519 part.

    Raises:
        KeyRefused: on construction: nothing can be sealed to it.
    """

    reader: Reader
    suite: Suite
    content: bytes
    created_at: datetime

    def __post_init__(self) -> None:
        try:
            self.seal(b"", info=b"")
        except ValueError:
            told = f"not a {self.reader} key: nothing can be sealed to it"
            raise KeyRefused(told, hint="copy the whole line") from None

    @cached_property
    def key_id(self) -> KeyId:
        """Its fingerprint."""
        return fingerprint(self.reader.kind(self.suite), self.content)

    @property
    def line(self) -> str:
        """Its text form, to be copied."""
        kind = self.reader.kind(self.suite)
        return write_line(KeyLine(kind=kind, content=self.content, created_at=self.created_at))

    def seal(self, plaintext: bytes, *, info: bytes) -> bytes:
        """Return a ciphertext that only the private key opens, and only with the same `info`."""
        return _HPKE[self.suite].encrypt(plaintext, self._handle, info=info)

    @cached_property
    def _handle(self) -> _PublicHandle:
        post_quantum, classic = self.content[:-_X25519_BYTES], self.content[-_X25519_BYTES:]
        x25519 = X25519PublicKey.from_public_bytes(classic)
        if self.suite is Suite.X25519 and not post_quantum:
            return x25519
        if len(post_quantum) != _MLKEM_PUBLIC_BYTES:
            raise ValueError("of the wrong length")
        return hpke.MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(post_quantum), x25519)


@dataclass(frozen=True, kw_only=True)
class SealingKey:
    """What is opened with; `content` is the seed of the ML-KEM part, if any, then the private X25519 part."""

    reader: Reader
    suite: Suite
    content: bytes = field(repr=False)
    created_at: datetime

    def __post_init__(self) -> None:
        seed_bytes = _MLKEM_SEED_BYTES if self.suite is Suite.MLKEM768_X25519 else 0
        if len(self.content) != seed_bytes + _X25519_BYTES:
            told = f"not a private {self.reader} key: its length is wrong"
            raise KeyRefused(told, hint="make one with `jobqueue keys new`")

    @cached_property
    def public(self) -> SealingPublicKey:
        """What others seal to."""
        content = self._x25519.public_key().public_bytes_raw()
        if self.suite is Suite.MLKEM768_X25519:
            content = self._mlkem.public_key().public_bytes_raw() + content
        return SealingPublicKey(reader=self.reader, suite=self.suite, content=content, created_at=self.created_at)

    @property
    def line(self) -> str:
        """Its text form, for its own file only."""
        kind = self.reader.private_kind(self.suite)
        return write_line(KeyLine(kind=kind, content=self.content, created_at=self.created_at))

    def open(self, ciphertext: bytes, *, info: bytes) -> bytes:
        """Return the plaintext.

        Raises:
            Undecryptable: it was sealed to another key, with another `info`, or was changed.
        """
        try:
            return _HPKE[self.suite].decrypt(ciphertext, self._handle, info=info)
        except (InvalidTag, ValueError):  # a ValueError where it is too short
            raise Undecryptable("it does not open with the key that it names") from None

    @cached_property
    def _handle(self) -> _PrivateHandle:
        if self.suite is Suite.X25519:
            return self._x25519
        return hpke.MLKEM768X25519PrivateKey(self._mlkem, self._x25519)

    @property
    def _mlkem(self) -> MLKEM768PrivateKey:
        return MLKEM768PrivateKey.from_seed_bytes(self.content[:_MLKEM_SEED_BYTES])

    @property
    def _x25519(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self.content[-_X25519_BYTES:])


def make_sealing_key(reader: Reader, suite: Suite, created_at: datetime) -> SealingKey:
    """Return a new pair."""
    content = X25519PrivateKey.generate().private_bytes_raw()
    if suite is Suite.MLKEM768_X25519:
        content = MLKEM768PrivateKey.generate().private_bytes_raw() + content
    return SealingKey(reader=reader, suite=suite, content=content, created_at=created_at)
