"""The whole stack on one machine, as ordinary processes on loopback: `python -m infra.stack up`, or `make stack`."""
