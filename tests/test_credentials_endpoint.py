"""Where the API server is, from a pod's environment and from a kubeconfig's server."""

from __future__ import annotations

import pytest

from kubetls.credentials.endpoint import (
    Endpoint,
    endpoint_from_environment,
    endpoint_from_url,
    ignored_proxies,
    is_namespace,
)
from kubetls.errors import ConfigError, KubeconfigError, NotInCluster
from kubetls.identity.names import reference_identifier

HOST = "KUBERNETES_SERVICE_HOST"
HTTPS = "KUBERNETES_SERVICE_PORT_HTTPS"
PORT = "KUBERNETES_SERVICE_PORT"


@pytest.mark.parametrize(
    ("expected", "host"),
    [
        ("https://10.96.0.1:443", "10.96.0.1"),
        ("https://[fd00:10:96::1]:443", "fd00:10:96::1"),
        ("https://[::1]:443", "0:0:0:0:0:0:0:1"),
        ("https://a1b2.hcp.westeurope.azmk8s.io:443", "A1B2.hcp.westeurope.azmk8s.io"),
    ],
)
def test_host_variable_takes_addresses_and_names(expected: str, host: str) -> None:
    """IPv4, bare IPv6 (bracketed in the URL) and DNS names are read."""
    endpoint = endpoint_from_environment({HOST: host, PORT: "443"})
    assert expected == endpoint.url == str(endpoint)
    assert endpoint.address is endpoint.reference


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "10.96.0.1 ",
        "10.96.0.1\n",
        "010.96.0.1",
        "127.1",
        "0x7f.1",
        "10.96.0.1:443",
        "https://10.96.0.1",
        "user@10.96.0.1",
        "10.96.0.1/x",
        "[::1]",
        "fe80::1%eth0",
        "a..b",
        "-a.b",
        "a_b",
        "*.a.b",
        "m\u00fcnchen.example",
        "\u0661\u0660.0.0.1",
        "a\x00b",
        # Legal addresses, of no one server.
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "::ffff:10.96.0.1",
    ],
)
def test_malformed_host_variable_is_named(host: str) -> None:
    """What is no address or name of one server is refused by the variable's name."""
    with pytest.raises(ConfigError) as caught:
        endpoint_from_environment({HOST: host, PORT: "443"})
    assert ConfigError is type(caught.value)
    assert HOST == caught.value.source


def test_unset_host_is_not_in_cluster() -> None:
    """Without KUBERNETES_SERVICE_HOST there is no cluster, whatever else is set."""
    with pytest.raises(NotInCluster) as caught:
        endpoint_from_environment({PORT: "443"})
    assert HOST == caught.value.source
    assert "kubeconfig" in str(caught.value)


@pytest.mark.parametrize(
    ("expected", "variables"),
    [
        (6443, {HTTPS: "6443", PORT: "443"}),
        (443, {PORT: "443"}),
        (65535, {HTTPS: "65535"}),
        (1, {HTTPS: "1", PORT: "nonsense"}),
    ],
)
def test_https_port_comes_first(expected: int, variables: dict[str, str]) -> None:
    """_PORT_HTTPS wins over _PORT."""
    endpoint = endpoint_from_environment({HOST: "10.96.0.1"} | variables)
    assert expected == endpoint.port


@pytest.mark.parametrize(
    "port",
    [
        "",
        "0",
        "0443",
        "65536",
        "-1",
        "+443",
        "443 ",
        "4_4_3",
        "٤٤",
        "99999999",
        "tcp://10.96.0.1:443",
        "https",
        "443\n",
    ],
)
@pytest.mark.parametrize("variable", [HTTPS, PORT])
def test_malformed_port_variable_is_named(variable: str, port: str) -> None:
    """A port is 1 to 65535 in ASCII digits; the variable is named, none else tried."""
    environ = {HOST: "10.96.0.1", PORT: "443"} | {variable: port}
    with pytest.raises(ConfigError) as caught:
        endpoint_from_environment(environ)
    assert variable == caught.value.source
    assert "\n" not in str(caught.value)


def test_missing_port_names_both_variables() -> None:
    """A host without any port is an error, no default is guessed."""
    with pytest.raises(ConfigError, match=f"{HTTPS}: neither it nor {PORT} is set"):
        endpoint_from_environment({HOST: "10.96.0.1"})


@pytest.mark.parametrize(
    ("expected", "url"),
    [
        ("https://127.0.0.1:6443", "https://127.0.0.1:6443"),
        ("https://kind.example:443", "HTTPS://Kind.Example"),
        ("https://[::1]:6443", "https://[::1]:6443/"),
        ("https://0.0.0.0:35567", "https://0.0.0.0:35567"),
        (
            "https://r.example:443/k8s/clusters/c-1",
            "https://r.example/k8s/clusters/c-1/",
        ),
    ],
)
def test_server_url_keeps_prefix_and_port(expected: str, url: str) -> None:
    """Https with host, port, prefix; 443 without a port; k3d's 0.0.0.0 is taken."""
    assert expected == endpoint_from_url(url, "server").url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:6443",
        "http://127.0.0.1:8080",
        "unix:///run/x",
        "https://",
        "https://:6443",
        "https://host:",
        "https://host:0",
        "https://host:99999",
        "https://::1:6443",
        "https://[::1",
        "https://[::1]x:1",
        "https://[10.0.0.1]:1",
        "https://[]:1",
        "https://[fe80::1%25eth0]:1",
        "https://user@host",
        "https://user:SECRET@host",
        "https://evil.example\\@host",
        "https://host?x=SECRET",
        "https://host?",
        "https://host#",
        "https://host/#SECRET",
        "https://host/a/../b",
        "https://host/./a",
        "https://host//a",
        "https://host/%2e%2e/a",
        "https://host/a b",
        "https://host\n",
        "https://ho\tst",
        " https://host",
        "https://m\u00fcnchen.example",
        "https://010.0.0.1",
        "https://2130706433",
    ],
)
def test_malformed_server_url_is_refused(url: str) -> None:
    """Anything but https://host[:port][/prefix] is refused; secret parts not shown."""
    with pytest.raises(KubeconfigError) as caught:
        endpoint_from_url(url, "clusters[x].server")
    assert "clusters[x].server" == caught.value.source
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_server_name_replaces_the_reference_only() -> None:
    """tls-server-name is insisted on, the address is still dialled."""
    name = reference_identifier("kubernetes.default.svc")
    endpoint = endpoint_from_url("https://10.0.0.1:1", "server", name)
    assert name is endpoint.reference
    assert "https://10.0.0.1:1" == endpoint.url


def test_endpoint_is_a_value() -> None:
    """Equal by content, frozen."""
    address = reference_identifier("10.0.0.1")
    assert Endpoint(address, 443) == Endpoint(address, 443)
    with pytest.raises(AttributeError):
        Endpoint(address, 443).port = 80  # type: ignore[misc]


@pytest.mark.parametrize(
    ("expected", "text"),
    [(True, "default"), (True, "a"), (True, "0-9"), (True, "a" * 63)]
    + [(False, text) for text in ("", "A", "a.b", "-a", "a-", "a" * 64, "a\n", "a/b")],
)
def test_namespace_is_a_label(expected: bool, text: str) -> None:
    """A namespace's name is an RFC 1123 label."""
    assert expected is is_namespace(text)


def test_proxies_that_are_passed_over_are_named_without_value() -> None:
    """Those that other clients would use for https; set and empty is not set."""
    environ = {
        "HTTPS_PROXY": "http://ann:SECRET@proxy",
        "all_proxy": "socks5://proxy",
        "https_proxy": "",
        "HTTP_PROXY": "http://proxy",
        "NO_PROXY": "*",
    }
    assert ("HTTPS_PROXY", "all_proxy") == ignored_proxies(environ)
    assert () == ignored_proxies({})
