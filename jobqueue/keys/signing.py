"""Signing pairs, Ed25519: of senders for specs, nodes for reports, clerks for grants, operators for published keys."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from jobqueue.errors import KeyRefused
from jobqueue.ids import KeyId
from jobqueue.keys.lines import KeyLine, fingerprint, write_line

_KEY_BYTES = 32
_PRIME = 2**255 - 19
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7

# The y of the eight points of small order: under a key made of one, a signature of zeros holds for any message.
WEAK_Y: Final = frozenset({0, 1, _PRIME - 1, _ORDER_8, _PRIME - _ORDER_8})


class Signer(StrEnum):
    """Who signs. A key of one is never taken for a key of another."""

    SENDER = "sender"
    NODE = "node"
    CLERK = "clerk"
    OPERATOR = "operator"

    @property
    def kind(self) -> str:
        """The word for its public keys in their text form."""
        return f"{self.value}-ed25519"

    @property
    def private_kind(self) -> str:
        """The word for its private keys in their text form."""
        return f"{self.kind}-private"


@dataclass(frozen=True, kw_only=True)
class SigningPublicKey:
    """What signatures are checked with.

    Raises:
        KeyRefused: on construction: the content is not a point, not in its one encoding, or of small order.
    """

    signer: Signer
    content: bytes
    created_at: datetime

    def __post_init__(self) -> None:
        if len(self.content) != _KEY_BYTES:
            raise KeyRefused(
                f"not a key of a {self.signer}: {len(self.content)} bytes long", hint="copy the whole line"
            )
        y = int.from_bytes(self.content, "little") & (2**255 - 1)
        if y >= _PRIME or y in WEAK_Y:
            raise KeyRefused(f"a weak key of a {self.signer}: anybody can sign for it", hint="never trust its giver")

    @cached_property
    def key_id(self) -> KeyId:
        """Its fingerprint."""
        return fingerprint(self.signer.kind, self.content)

    @property
    def line(self) -> str:
        """Its text form, to be copied."""
        return write_line(KeyLine(kind=self.signer.kind, content=self.content, created_at=self.created_at))

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Tell whether `signature` over `message` holds."""
        try:
            Ed25519PublicKey.from_public_bytes(self.content).verify(signature, message)
        except (InvalidSignature, ValueError):  # a ValueError where the content is no point of the curve
            return False
        return True


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """What is signed with; `content` is the 32 private bytes."""

    signer: Signer
    content: bytes = field(repr=False)
    created_at: datetime

    def __post_init__(self) -> None:
        if len(self.content) != _KEY_BYTES:
            told = f"not the private key of a {self.signer}: its length is wrong"
            raise KeyRefused(told, hint="make one with `jobqueue keys new`")

    @cached_property
    def public(self) -> SigningPublicKey:
        """What others check its signatures with."""
        content = self._private.public_key().public_bytes_raw()
        return SigningPublicKey(signer=self.signer, content=content, created_at=self.created_at)

    @property
    def line(self) -> str:
        """Its text form, for its own file only."""
        return write_line(KeyLine(kind=self.signer.private_kind, content=self.content, created_at=self.created_at))

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of the signature."""
        return self._private.sign(message)

    @cached_property
    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.content)


def make_signing_key(signer: Signer, created_at: datetime) -> SigningKey:
    """Return a new pair."""
    content = Ed25519PrivateKey.generate().private_bytes_raw()
    return SigningKey(signer=signer, content=content, created_at=created_at)
