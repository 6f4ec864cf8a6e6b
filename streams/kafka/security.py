"""How to reach the brokers, in the words of each client library. Secrets stay in settings, never in messages."""

from __future__ import annotations

import ssl
from typing import TypedDict

from kithstream.streams.config import KafkaConfig


class Reach(TypedDict, total=False):
    """Keyword arguments that aiokafka and kafka-python share."""

    bootstrap_servers: list[str]
    security_protocol: str
    ssl_context: ssl.SSLContext
    sasl_mechanism: str
    sasl_plain_username: str
    sasl_plain_password: str


def reach(config: KafkaConfig) -> Reach:
    """Return the keyword arguments of any client; raises ValueError naming the setting that is missing or unusable."""
    found: Reach = {
        "bootstrap_servers": [server.strip() for server in config.servers.split(",") if server.strip()],
        "security_protocol": config.security,
    }
    if not found["bootstrap_servers"]:
        raise ValueError(f"kafka.servers is {config.servers!r}, expected host:port,...")
    if config.security.endswith("SSL"):
        found["ssl_context"] = tls(config)
    if config.security.startswith("SASL"):
        if not (config.username and config.password):
            missing = "kafka.password" if config.username else "kafka.username"
            raise ValueError(f"{missing} is empty, {config.security} needs it")
        found["sasl_mechanism"] = config.sasl_mechanism
        found["sasl_plain_username"] = config.username
        found["sasl_plain_password"] = config.password
    return found


def tls(config: KafkaConfig) -> ssl.SSLContext:
    """Return the context of TLS connections; raises ValueError naming the file that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=config.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"kafka.ca_file is {config.ca_file!r}: {error}") from error
    context.check_hostname = config.check_hostname
    if config.cert_file:
        try:
            context.load_cert_chain(config.cert_file, config.key_file or None, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"kafka.cert_file is {config.cert_file!r}: {error}") from error
    return context


def _no_password() -> str:
    """A key that is encrypted is refused; OpenSSL would ask for its password at the terminal, and wait."""
    return ""
