"""This machine: the Ray that runs here, or a new one bound to loopback."""

from __future__ import annotations

import ray


def connect() -> None:
    """Make sure this process is connected to a Ray.

    A connection that exists is kept. Otherwise the cluster that Ray finds by itself (``RAY_ADDRESS``, or one started on
    this machine) is joined; failing that a new one is started, reachable from this machine only and without dashboard.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(address="auto", log_to_driver=False)
    except ConnectionError:
        ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
