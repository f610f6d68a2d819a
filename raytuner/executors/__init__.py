"""Who runs leases. Each executor speaks `raytuner.protocols.Executor`."""
