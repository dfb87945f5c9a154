"""How a command comes to a Ray cluster: one that runs, or one of this machine's own."""

import contextlib
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import BadInput

LOCAL, AUTO, LOOPBACK = "local", "auto", "127.0.0.1"
# Memory that a worker without a GPU is given, where nobody says how many there are to be.
EACH_BYTES = 16e9
# Seconds in which a cluster's address must answer.
REACHED = 10.0


@contextlib.contextmanager
def connected(address: str, workers: int | None) -> Iterator:
    """Ray, connected to a cluster, or with one of this machine's own that ends with us and listens on loopback alone.

    Raises BadInput where there is no such cluster.
    """
    for name, value in _environment(address).items():
        os.environ.setdefault(name, value)
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "mace"}
    # Ray puts its own in their place.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address not in (LOCAL, AUTO):
            _reached(address)
        with _unheard():
            if address == LOCAL:
                own = {"num_cpus": workers} if workers else {}
                ray.init("local", include_dashboard=False, _node_ip_address=LOOPBACK, **own, **quiet)
            else:
                ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"--ray {address}: {' '.join(str(error).split())}") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def _environment(address: str) -> dict[str, str]:
    """How Ray is set, unless somebody set it otherwise."""
    # Nothing is told to anybody, nothing is measured, and a worker without a GPU is as it would be without Ray.
    off = ("RAY_USAGE_STATS_ENABLED", "RAY_enable_metrics_collection", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
    found = dict.fromkeys(off, "0")
    # Its own parts write into stderr otherwise, of what they do without, and that they were told not to.
    found["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    # Tries to reach a cluster, of some seconds each.
    found["RAY_NUM_REDIS_GET_RETRIES"] = "4"
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS", "")
        with contextlib.suppress(OSError):
            # Where `ray start` says which cluster runs here.
            where = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
            address = address or where.read_text(encoding="utf-8")
    if address == LOCAL or address.strip("[").startswith(("127.", "localhost", "::1")):
        # Else it takes the machine's address in place of loopback, where such a cluster does not listen.
        found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return found


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Nothing is written on stderr, also by what is not Python; errors are raised all the same."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def how_many(resources: dict, asked: int | None) -> int:
    """How many workers: as asked; one a GPU; or, without any, as many as memory and processors hold."""
    if asked:
        return asked
    gpus = int(resources.get("GPU", 0))
    return gpus or max(1, min(int(resources.get("CPU", 1)), int(resources.get("memory", 0) // EACH_BYTES)))


def _reached(address: str) -> None:
    """Raise OSError where nobody listens, which Ray finds out in many minutes; ValueError for what is no address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("it is auto, local or a host and a port, such as 10.0.0.1:6379")
    socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
