"""Private key files under a passphrase: Scrypt makes a key of it, AES-256-GCM encrypts the key's line."""

import os
from datetime import datetime
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from jobqueue.errors import KeyRefused
from jobqueue.keys.lines import KeyLine, read_line, write_line

_KIND = "locked"
_SALT_BYTES = 16
_NONCE_BYTES = 12
_KEY_BYTES = 32
_HINT = "set JOBQUEUE_KEYS_PASSPHRASE_FILE to the file that holds it"


def lock(line: str, *, passphrase: str, created_at: datetime) -> str:
    """Return the text of a private key's file: its line as it is, or encrypted where there is a passphrase."""
    if not passphrase:
        return line
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    sealed = AESGCM(_derive(passphrase, salt)).encrypt(nonce, line.encode(), None)
    return write_line(KeyLine(kind=_KIND, content=salt + nonce + sealed, created_at=created_at))


def unlock(text: str, *, passphrase: str) -> str:
    """Return the line of a key from the text of its file.

    Raises:
        KeyRefused: it is encrypted, with another passphrase or while there is none.
    """
    parts = read_line(text)
    if parts.kind != _KIND:
        return text
    if not passphrase:
        raise KeyRefused("the private key is under a passphrase, and none is set", hint=_HINT)
    salt, nonce = parts.content[:_SALT_BYTES], parts.content[_SALT_BYTES : _SALT_BYTES + _NONCE_BYTES]
    try:
        line = AESGCM(_derive(passphrase, salt)).decrypt(nonce, parts.content[_SALT_BYTES + _NONCE_BYTES :], None)
    except (InvalidTag, ValueError):  # a ValueError where it was cut
        raise KeyRefused("the private key does not open with the passphrase that is set", hint=_HINT) from None
    return line.decode()


@lru_cache(maxsize=64)
def _derive(passphrase: str, salt: bytes) -> bytes:
    """Return the key of one file; a tenth of a second, so it is remembered for when its folder is read again."""
    return Scrypt(salt=salt, length=_KEY_BYTES, n=2**15, r=8, p=1).derive(passphrase.encode())
