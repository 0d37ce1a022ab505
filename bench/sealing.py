"""How many specs of 4 kB are sealed and opened in a second, on one core."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from services.images import BUSYBOX

from bench.results import Result, compare
from bench.sampling import interleave, seconds
from bench.servers import Servers
from jobqueue.envelope import open_sealed, seal, verify
from jobqueue.header import Header
from jobqueue.ids import make_experiment_id
from jobqueue.keys import KeyRing, ensure_laptop_keys
from jobqueue.spec import parse_spec

_ROUNDS = 20
_BATCH = 100
_SPEC_BYTES = 4096


def measure_seal_open_rate(servers: Servers) -> list[Result]:
    """Measure seal, verify and open against the same cryptography on the same bytes, without codec and checks."""
    ours, bare = _ours(servers.folder / "keys"), _bare()
    batch = 20 if servers.is_quick else _BATCH
    samples = interleave(
        servers.rounds(_ROUNDS),
        {
            "ours": lambda: batch / seconds(lambda: [ours() for _ in range(batch)]),
            "bare": lambda: batch / seconds(lambda: [bare() for _ in range(batch)]),
        },
    )
    note = "HPKE and Ed25519 alone, the same suite on the same bytes"
    return [compare("seal_open_rate", samples["ours"], samples["bare"], unit="1/s", note=note)]


def _ours(folder: Path) -> Callable[[], None]:
    ensure_laptop_keys(folder)
    keys = KeyRing(folder)
    spec = parse_spec({"image": BUSYBOX, "command": ["true"], "env": {"FILL": "x" * _SPEC_BYTES}, "project": "bench"})
    queue, now = "bench_cpu", datetime.now(UTC)
    header = Header(
        experiment_id=make_experiment_id(),
        queue=queue,
        project=spec.project,
        resources=spec.resources,
        submitted_at=now,
        expires_at=now + spec.expires,
    )

    def once() -> None:
        message = seal(spec, header, keys=keys)
        open_sealed(verify(message, keys=keys, queue=queue, now=now), keys=keys)

    return once


def _bare() -> Callable[[], None]:
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    private = hpke.MLKEM768X25519PrivateKey(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())
    public, signer = private.public_key(), Ed25519PrivateKey.generate()
    verifier, plaintext, info = signer.public_key(), os.urandom(_SPEC_BYTES), os.urandom(32)

    def once() -> None:
        ciphertext = suite.encrypt(plaintext, public, info=info)
        verifier.verify(signer.sign(ciphertext), ciphertext)
        suite.decrypt(ciphertext, private, info=info)

    return once
