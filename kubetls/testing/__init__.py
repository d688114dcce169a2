"""A scripted TLS API server, for tests of programs that use kubetls.

    import kubetls
    from kubetls import testing

    with testing.server(objects=[{"apiVersion": "v1", "kind": "Pod", ...}]) as fake:
        fake.fail_next(429, retry_after=1)
        with kubetls.session(fake.config) as session:
            ...

It speaks real TLS on loopback, with a certificate of its own authority: nothing of the
client is replaced. It keeps objects and versions as the API server does, and does on
demand what a real one does rarely: refuse, expire, stall, cut, rotate. No validation,
no defaults, no admission: for these, test against a real cluster.
"""

from kubetls.testing.server import Server, server

__all__ = ["Server", "server"]
