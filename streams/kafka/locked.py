"""A local broker behind TLS and passwords: an authority of its own, a certificate for 127.0.0.1, and SCRAM users.

For development and tests, as `local` is. Secrets are made once and stay in the broker's directory, readable by its
owner alone; whoever starts it shows them to the machine's other processes for as long as the storage is formatted.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.local import JARS, LocalKafka, NoKafka

USER: Final = "kithstream"  # the one that `client.toml` names
DAYS: Final = "365"  # for which a certificate is valid
_BROKER: Final = "broker"
_SCRAM: Final = "org.apache.kafka.common.security.scram.ScramLoginModule"


class Certificates(NamedTuple):
    """Files in PEM."""

    authority: Path  # what clients trust
    broker: Path  # the broker's key and its chain
    client: Path  # a client's certificate
    client_key: Path


def certify(folder: Path, *, names: str = "IP:127.0.0.1") -> Certificates:
    """Return the certificates of a folder, made with openssl if they are not there; raises NoKafka.

    `names` are the alternative names of the broker's: the addresses under which it may be reached.
    """
    made = Certificates(*(folder / f"{name}.pem" for name in ("authority", "broker", "client", "client-key")))
    if all(file.exists() for file in made):
        return made
    if shutil.which("openssl") is None:
        raise NoKafka("openssl is not on the PATH; it makes the certificates")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    key = folder / "authority-key.pem"
    _openssl(
        "req", "-x509", *_new(key), "-subj", "/CN=kithstream local", "-days", DAYS, "-out", made.authority
    )
    broker_key, broker = folder / "broker-key.pem", folder / "broker-cert.pem"
    _sign(folder, key, made.authority, broker_key, broker, _BROKER, names)
    _sign(folder, key, made.authority, made.client_key, made.client, USER, f"DNS:{USER}")
    _write(made.broker, broker_key.read_text() + broker.read_text() + made.authority.read_text())
    return made


def lock(
    folder: Path, *, port: int = 0, jars: Path = JARS, names: str = "IP:127.0.0.1", heap_mib: int = 512
) -> tuple[LocalKafka, KafkaConfig]:
    """Return a broker whose only listener for clients is SASL_SSL, and the settings of a client; raises NoKafka.

    The same settings are in `client.toml`. A client may show a certificate of the same authority, and need not.
    """
    files = certify(folder / "tls", names=names)
    users = _users(folder / "users.json")
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(files.broker.absolute()),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(files.authority.absolute()),
        "ssl.client.auth": "requested",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
            f'{_SCRAM} required username="{_BROKER}" password="{users[_BROKER]}";'
        ),
    }
    broker = LocalKafka(
        folder,
        port=port,
        jars=jars,
        security="SASL_SSL",
        properties=properties,
        users=users,
        heap_mib=heap_mib,
    )
    config = KafkaConfig(
        servers=broker.servers,
        security="SASL_SSL",
        ca_file=str(files.authority.absolute()),
        sasl_mechanism="SCRAM-SHA-512",
        username=USER,
        password=users[USER],
    )
    shown = ("servers", "security", "ca_file", "sasl_mechanism", "username", "password")
    lines = "".join(f"{name} = {json.dumps(getattr(config, name))}\n" for name in shown)
    _write(folder / "client.toml", f"[kafka]\n{lines}")
    return broker, config


def _users(file: Path) -> Mapping[str, str]:
    """The passwords of the broker's users, made once: they are in its storage."""
    if not file.exists():
        _write(file, json.dumps({name: secrets.token_urlsafe(24) for name in (_BROKER, USER)}))
    found: dict[str, str] = json.loads(file.read_text())
    return found


def _sign(
    folder: Path, authority_key: Path, authority: Path, key: Path, out: Path, subject: str, names: str
) -> None:
    request, extensions = folder / "request.pem", folder / "extensions"
    extensions.write_text(f"subjectAltName={names}\n")
    _openssl("req", *_new(key), "-subj", f"/CN={subject}", "-out", request)
    by = ("-CA", authority, "-CAkey", authority_key, "-CAcreateserial", "-extfile", extensions)
    _openssl("x509", "-req", "-in", request, *by, "-days", DAYS, "-out", out)


def _new(key: Path) -> tuple[str | Path, ...]:
    """The words by which openssl makes a key, not encrypted, that nobody else can read."""
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", key)


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoKafka(f"openssl {words[0]} ends with {done.returncode}: {done.stderr.strip()[-400:]}")


def _write(file: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
