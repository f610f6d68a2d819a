"""This machine: the Ray that runs here, or a new one that nobody else can reach."""

from __future__ import annotations

import ipaddress
import os
from typing import Any

import ray
from ray._private import ray_constants, services


def connect() -> None:
    """Make sure this process is connected to a Ray.

    A connection that exists is kept. Otherwise the cluster that Ray finds by itself (``RAY_ADDRESS``, or one started on
    this machine) is joined; failing that, one is started as by `start`.

    Raises ValueError where the connection is, or would be, one of Ray Client: a driver must be on the cluster.
    """
    if ray.util.client.ray.is_connected():
        raise _no_client("this process is connected through Ray Client")
    if ray.is_initialized():
        return
    found = services.get_ray_address_from_environment(None, None)
    if found is None:
        start()
        return
    if "://" in found:
        raise _no_client(f"RAY_ADDRESS is {found!r}, the address of a client")
    if _is_loopback(found):
        _keep_to_loopback()
    ray.init(log_to_driver=False)


def start(**settings: Any) -> str:
    """Start a Ray that listens on loopback only, without dashboard; return its address.

    ``settings``: further arguments of ``ray.init``, such as ``num_cpus`` and ``num_gpus``.
    """
    _keep_to_loopback()
    context = ray.init(
        "local",  # never somebody else's
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        **settings,
    )
    address: str = context.address_info["gcs_address"]
    return address


def _no_client(what: str) -> ValueError:
    return ValueError(
        f"{what}; raytuner needs a driver on the cluster: submit the script with `ray job submit -- python …`, or run "
        'it on the head node after `ray.init(address="auto")`'
    )


def _keep_to_loopback() -> None:
    """Stop Ray from turning 127.0.0.1 into the machine's own address and listening on all of its networks.

    It does so wherever clusters are supported. The switch, named after the systems where they are not, works on Linux
    as well (seen on Ray 2.60). Ray reads it when it is imported, which may have been long ago, and so do the processes
    that it starts.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
