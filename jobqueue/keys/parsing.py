"""From text to keys of any kind."""

from typing import Final

from jobqueue.errors import KeyRefused
from jobqueue.keys.lines import read_line, split_lines
from jobqueue.keys.sealing import Reader, SealingKey, SealingPublicKey, Suite
from jobqueue.keys.signing import Signer, SigningKey, SigningPublicKey

PublicKey = SealingPublicKey | SigningPublicKey
PrivateKey = SealingKey | SigningKey
Key = PublicKey | PrivateKey

_SIGNERS: Final = {signer.kind: signer for signer in Signer}
_PRIVATE_SIGNERS: Final = {signer.private_kind: signer for signer in Signer}
_READERS: Final = {reader.kind(suite): (reader, suite) for reader in Reader for suite in Suite}
_PRIVATE_READERS: Final = {reader.private_kind(suite): (reader, suite) for reader in Reader for suite in Suite}
_KINDS: Final = {*_SIGNERS, *_PRIVATE_SIGNERS, *_READERS, *_PRIVATE_READERS}


def parse_key(line: str) -> Key:
    """Return the key that a line is the text form of.

    Raises:
        KeyRefused: it is of no known kind, malformed or weak.
    """
    parts = read_line(line)
    kind, content, created_at = parts.kind, parts.content, parts.created_at
    if kind in _SIGNERS:
        return SigningPublicKey(signer=_SIGNERS[kind], content=content, created_at=created_at)
    if kind in _PRIVATE_SIGNERS:
        return SigningKey(signer=_PRIVATE_SIGNERS[kind], content=content, created_at=created_at)
    if kind in _READERS:
        reader, suite = _READERS[kind]
        return SealingPublicKey(reader=reader, suite=suite, content=content, created_at=created_at)
    if kind in _PRIVATE_READERS:
        reader, suite = _PRIVATE_READERS[kind]
        return SealingKey(reader=reader, suite=suite, content=content, created_at=created_at)
    raise KeyRefused("not a key: of a kind that this version does not know", hint="update jobqueue here")


def is_known(line: str) -> bool:
    """Tell whether a line is of a kind that this version knows.

    Raises:
        KeyRefused: it is the line of no key of any kind.
    """
    return read_line(line).kind in _KINDS


def parse_public(line: str) -> PublicKey:
    """Return the public key that a line is the text form of.

    Raises:
        KeyRefused: it is none, or a weak one.
    """
    key = parse_key(line)
    if isinstance(key, SealingKey | SigningKey):
        raise KeyRefused("this is a private key: never send it", hint="make new keys, and copy the .pub file's line")
    return key


def parse_lines(text: str) -> list[PublicKey]:
    """Return the public keys of several lines.

    Raises:
        KeyRefused: one of them is none, or a weak one.
    """
    return [parse_public(line) for line in split_lines(text)]


def parse_reporting(line: str) -> SealingPublicKey:
    """Return the public key for reports that a line is the text form of.

    Raises:
        KeyRefused: it is none.
    """
    key = parse_public(line)
    if not isinstance(key, SealingPublicKey) or key.reader is not Reader.REPORTING:
        raise KeyRefused("not a key for reports", hint="`jobqueue keys new reporting` makes one")
    return key
