"""Measures aionetiface in a lab of netyard's: see README.md in this folder.

Prints one JSON object: milliseconds until the external address is known (`address`), until the NAT is
(`nat`), and until all cards are listed (`list`). Its bundled servers are replaced by the lab's, and the
lab's addresses, which are for documentation, are made public ones for it.
"""

import asyncio
import ipaddress
import json
import sys
import time

DOCUMENTATION = [ipaddress.ip_network(net) for net in ("198.51.100.0/24", "203.0.113.0/24")]
constants = ipaddress._IPv4Constants
constants._private_networks = [
    net for net in constants._private_networks if net not in DOCUMENTATION
]

from aionetiface import servers  # noqa: E402
from aionetiface.entrypoint import aionetiface_setup_netifaces  # noqa: E402
from aionetiface.nic.interface import Interface  # noqa: E402
from aionetiface.nic.select_interface import list_interfaces  # noqa: E402

ENDPOINTS = [
    (ip, port) for ip in ("198.51.100.1", "198.51.100.2") for port in (3478, 3479)
]


def entry(endpoint):
    ip, port = endpoint
    return {
        "id": 1, "af": 2, "proto": 2, "ip": ip, "port": port, "user": None, "password": None,
        "score": 1.0, "fqns": [], "group_id": 1, "status_id": 1, "alias_id": None,
    }


def use_the_lab():
    infra = servers.INFRA
    infra["timestamp"] = int(time.time())
    for proto in ("UDP", "TCP"):
        infra["STUN(see_ip)"]["IPv4"][proto] = [[entry(one)] for one in ENDPOINTS]
        infra["STUN(see_ip)"]["IPv6"][proto] = []
    group = [entry(one) for one in ENDPOINTS]
    infra["STUN(test_nat)"]["IPv4"]["UDP"] = [group] * 5
    infra["STUN(test_nat)"]["IPv6"]["UDP"] = []


async def measure(card):
    took = {}
    start = time.monotonic()
    cards = await aionetiface_setup_netifaces()
    for name in await list_interfaces(cards):
        cards.ifaddresses(name)
    took["list"] = (time.monotonic() - start) * 1000
    if card is None:
        return took
    start = time.monotonic()
    nic = await Interface(card)
    took["address"] = (time.monotonic() - start) * 1000
    took["seen"] = nic.route(nic.what_afs()[0]).ext()
    start = time.monotonic()
    nat = await nic.load_nat()
    took["nat"] = (time.monotonic() - start) * 1000
    took["type"] = nat and nat["type"]
    return took


use_the_lab()
print(json.dumps(asyncio.run(measure(sys.argv[1] if len(sys.argv) > 1 else None))))
