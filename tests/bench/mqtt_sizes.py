"""What many sessions, retained messages and filters cost an MQTT broker: the load and what it measures.

A broker is an address, a process id whose CPU time and memory are read, and a folder where it keeps data (or None).
Each function gives figures by name. Part of `compare`, which starts the brokers.
"""

import os
import socket
import time
from pathlib import Path

BODY = b"x" * 256
PATIENCE = 60
QUIET = 5
CLIENT_ID = "compare"


def resident_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def disk_bytes(folder):
    """What its files take on the disk: some are made longer than they are."""
    if folder is None:
        return None
    return sum(path.stat().st_blocks * 512 for path in Path(folder).rglob("*") if path.is_file())


def text(words):
    octets = words.encode()
    return len(octets).to_bytes(2, "big") + octets


def packet(first, body):
    length, rest = b"", len(body)
    while True:
        octet, rest = rest & 0x7F, rest >> 7
        if rest == 0:
            return bytes([first]) + length + bytes([octet]) + body
        length += bytes([octet | 0x80])


def publish(topic, qos=0, packet_id=1, retain=False):
    head = packet_id.to_bytes(2, "big") if qos else b""
    return packet(0x30 | qos << 1 | retain, text(topic) + head + BODY)


class Client:
    """MQTT 3.1.1, blocking; counts what comes, and answers PUBLISHes of QoS 1."""

    def __init__(self, address, client_id, clean=True):
        self.socket = socket.create_connection(address, timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.input, self.came = b"", {}
        flags = bytes([2 if clean else 0])
        # 18 hours of keep alive: no pings.
        self.send(packet(0x10, text("MQTT") + b"\x04" + flags + b"\xfd\x20" + text(client_id)))
        self.until(0x20)

    def send(self, octets):
        self.socket.sendall(octets)

    def packets(self):
        """What comes with the next read: first bytes and bodies of whole packets."""
        octets = self.socket.recv(1 << 18)
        if not octets:
            raise ConnectionError("the broker closed the connection")
        octets, at = self.input + octets if self.input else octets, 0
        found = []
        while True:
            length, shift, head = 0, 0, at + 1
            while head < len(octets):
                octet = octets[head]
                length |= (octet & 0x7F) << shift
                shift, head = shift + 7, head + 1
                if octet < 0x80:
                    break
            else:
                break
            if len(octets) < head + length:
                break
            found.append((octets[at], octets[head : head + length]))
            at = head + length
        self.input = octets[at:]
        return found

    def until(self, kind, count=1):
        """Waits for so many packets of a kind that nobody has waited for."""
        while self.came.get(kind, 0) < count:
            answers = []
            for first, body in self.packets():
                self.came[first & 0xF0] = self.came.get(first & 0xF0, 0) + 1
                if first & 0xF0 == 0x30 and first & 6:
                    at = 2 + int.from_bytes(body[:2], "big")
                    answers.append(b"\x40\x02" + body[at : at + 2])
            if answers:
                self.send(b"".join(answers))
        self.came[kind] = self.came.get(kind, 0) - count

    def until_quiet(self, kind, count):
        """As `until`, but gives up when nothing comes for some seconds; gives how many did not come."""
        self.socket.settimeout(QUIET)
        try:
            self.until(kind, count)
        except TimeoutError:
            return count - self.came.get(kind, 0)
        finally:
            self.socket.settimeout(PATIENCE)
        return 0

    def subscribe(self, filters, qos):
        """One SUBSCRIBE, and its answer."""
        body = b"\0\x01" + b"".join(text(one) + bytes([qos]) for one in filters)
        self.send(packet(0x82, body))
        self.until(0x90)

    def ping(self):
        self.send(b"\xc0\0")
        self.until(0xD0)

    def publish_all(self, topics, retain=False, window=1000):
        """QoS 1, so many without PUBACK."""
        open_, batch = 0, []
        for number, topic in enumerate(topics):
            batch.append(publish(topic, 1, number % 65000 + 1, retain))
            if len(batch) == window:
                self.send(b"".join(batch))
                self.until(0x40, open_)
                open_, batch = len(batch), []
        self.send(b"".join(batch))
        self.until(0x40, open_ + len(batch))

    def goodbye(self):
        self.send(b"\xe0\0")
        self.socket.close()


def sessions(address, pid, folder, count, messages):
    """Sessions whose clients are away, each with a filter of its own and so many messages of QoS 1."""
    before, disk_before = resident_bytes(pid), disk_bytes(folder)
    for number in range(count):
        client = Client(address, f"{CLIENT_ID}-{number}", clean=False)
        client.subscribe([f"{CLIENT_ID}/{number}/+"], 1)
        client.goodbye()
    idle = resident_bytes(pid)
    publisher = Client(address, f"{CLIENT_ID}-publisher")
    began, cpu = time.time(), cpu_seconds(pid)
    # Round by round, as devices get theirs.
    publisher.publish_all(f"{CLIENT_ID}/{number}/{turn}" for turn in range(messages) for number in range(count))
    stored_seconds, stored_cpu = time.time() - began, cpu_seconds(pid) - cpu
    full, disk = resident_bytes(pid), disk_bytes(folder)
    publisher.goodbye()
    began, cpu = time.time(), cpu_seconds(pid)
    for number in range(count):
        client = Client(address, f"{CLIENT_ID}-{number}", clean=False)
        client.until(0x30, messages)
        client.ping()
        client.goodbye()
    seconds, cpu = time.time() - began, cpu_seconds(pid) - cpu
    return {
        "session_bytes": (idle - before) / count,
        "message_bytes": (full - idle) / (count * messages),
        "rss_mib": full / 2**20,
        "disk_mib": (disk - disk_before) / 2**20 if folder else None,
        "store_rate": count * messages / stored_seconds,
        "store_us": stored_cpu / (count * messages) * 1e6,
        "seconds": seconds,
        "rate": count * messages / seconds,
        "cpu_us": cpu / (count * messages) * 1e6,
    }


def retained(address, pid, folder, count):
    """Retained messages on topics of their own, and a subscriber to all of them."""
    before, disk_before = resident_bytes(pid), disk_bytes(folder)
    publisher = Client(address, f"{CLIENT_ID}-publisher")
    began = time.time()
    publisher.publish_all((f"{CLIENT_ID}/{n % 100}/device-{n}/state" for n in range(count)), retain=True)
    stored_seconds = time.time() - began
    full, disk = resident_bytes(pid), disk_bytes(folder)
    found = {
        "message_bytes": (full - before) / count,
        "rss_mib": full / 2**20,
        "disk_mib": (disk - disk_before) / 2**20 if folder else None,
        "store_rate": count / stored_seconds,
    }
    for qos in (0, 1):
        subscriber = Client(address, f"{CLIENT_ID}-subscriber-{qos}")
        began, cpu = time.time(), cpu_seconds(pid)
        subscriber.subscribe(["#"], qos)
        missing = subscriber.until_quiet(0x30, count)
        if missing:
            # Some brokers drop what their queue for a client cannot hold.
            found["lost"] = found.get("lost", 0) + missing
            continue
        found[f"seconds_qos_{qos}"] = time.time() - began
        found[f"cpu_us_qos_{qos}"] = (cpu_seconds(pid) - cpu) / count * 1e6
        subscriber.goodbye()
    return found


def filters(address, pid, _folder, count, each=10_000, published=200_000):
    """Filters of sessions, none of which matches; and what publishes cost, each to a topic of its own, so that
    nothing is remembered."""
    before, clients = resident_bytes(pid), []
    forms = ["{}/{}/x", "{}/{}/+/x", "+/{}-{}/x", "{}/{}/#"]
    began, cpu = time.time(), cpu_seconds(pid)
    for first in range(0, count, each):
        client = Client(address, f"{CLIENT_ID}-{first}")
        numbers = range(first, min(first + each, count))
        for at in range(0, len(numbers), 1000):
            client.subscribe([forms[n % 4].format(CLIENT_ID, n) for n in numbers[at : at + 1000]], 0)
        clients.append(client)
    seconds, cpu = time.time() - began, cpu_seconds(pid) - cpu
    found = {
        "filter_bytes": (resident_bytes(pid) - before) / count,
        "rss_mib": resident_bytes(pid) / 2**20,
        "filters_rate": count / seconds,
        "filter_us": cpu / count * 1e6,
    }
    publisher = Client(address, f"{CLIENT_ID}-publisher")
    for name, topic in [("new", "{0}/none-{1}/y"), ("same", "{0}/none/y")]:
        batches = []
        for at in range(0, published, 1000):
            batches.append(b"".join(publish(topic.format(CLIENT_ID, n)) for n in range(at, at + 1000)))
        cpu = cpu_seconds(pid)
        for batch in batches:
            publisher.send(batch)
        publisher.ping()
        found[f"cpu_us_{name}"] = (cpu_seconds(pid) - cpu) / published * 1e6
    for client in clients:
        client.goodbye()
    return found
