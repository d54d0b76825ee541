"""STOMP 1.0, 1.1 and 1.2 with stomp.py, and MQTT over WebSocket with paho-mqtt."""

import queue as queues

import stomp
from paho.mqtt import client as paho
from stomp.listener import ConnectionListener

from checks import BODY_SIZES, PATIENCE, equal, random_body, survives, true, unique

checks = []
VERSIONS = [stomp.Connection10, stomp.Connection11, stomp.Connection12]


def check(function):
    checks.append(function)
    return function


class Inbox(ConnectionListener):
    def __init__(self):
        self.messages, self.receipts, self.errors = queues.Queue(), queues.Queue(), queues.Queue()

    def on_message(self, frame):
        self.messages.put(frame)

    def on_receipt(self, frame):
        self.receipts.put(frame.headers["receipt-id"])

    def on_error(self, frame):
        self.errors.put(frame)


class Client:
    """A connected client; its messages go to `inbox.messages`."""

    def __init__(self, options, version=stomp.Connection12, **more):
        host, port = options.stomp.rsplit(":", 1)
        self.inbox = Inbox()
        self.client = version([(host, int(port))], reconnect_attempts_max=1, auto_decode=False, **more)
        self.client.set_listener("", self.inbox)
        self.client.connect("guest", "guest", wait=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.client.is_connected():
            self.client.disconnect()

    def send(self, destination, body, **headers):
        receipt = unique("receipt")
        self.client.send(destination, body, receipt=receipt, **headers)
        equal(self.inbox.receipts.get(timeout=PATIENCE), receipt, "receipt")

    def next(self):
        return self.inbox.messages.get(timeout=PATIENCE)


@check
def every_body_is_unchanged_in_every_version(options):
    for version in VERSIONS:
        with Client(options, version) as client:
            destination = "/queue/" + unique("queue")
            client.client.subscribe(destination, id="1", ack="auto")
            for size in BODY_SIZES:
                body = random_body(size)
                client.send(destination, body, persistent="true", number=str(size))
                frame = client.next()
                equal(frame.body if isinstance(frame.body, bytes) else frame.body.encode(), body, f"body of {size} bytes")
                equal(frame.headers["number"], str(size), "header")
                equal(frame.headers["destination"], destination, "destination")


@check
def headers_are_escaped_by_version(options):
    for version in VERSIONS[1:]:
        with Client(options, version) as client:
            destination = "/topic/" + unique("topic")
            client.client.subscribe(destination, id="1")
            value = "a:b\\c\nd"
            client.send(destination, b"x", special=value)
            equal(client.next().headers["special"], value, "special characters")


@check
def client_mode_acknowledges_all_before(options):
    destination = "/queue/" + unique("queue")
    with Client(options) as first:
        for i in range(10):
            first.send(destination, str(i), persistent="true")
        first.client.subscribe(destination, id="s", ack="client")
        frames = [first.next() for _ in range(10)]
        first.client.ack(frames[5].headers["ack"])
    with Client(options) as second:
        second.client.subscribe(destination, id="s", ack="client-individual")
        for i in range(6, 10):
            frame = second.next()
            equal((frame.body, frame.headers["redelivered"]), (str(i).encode(), "true"), "redelivered message")
            second.client.ack(frame.headers["ack"])


@check
def a_refused_message_comes_again_at_once(options):
    with Client(options) as client:
        destination = "/queue/" + unique("queue")
        client.client.subscribe(destination, id="s", ack="client-individual")
        client.send(destination, "again")
        for turn in range(3):
            frame = client.next()
            equal(frame.headers["redelivered"], "true" if turn else "false", "redelivered")
            client.client.nack(frame.headers["ack"])


@check
def transactions_take_effect_at_commit(options):
    with Client(options) as client:
        destination = "/queue/" + unique("queue")
        client.client.subscribe(destination, id="s")
        for end in ["abort", "commit"]:
            transaction = client.client.begin()
            client.client.send(destination, end, transaction=transaction)
            getattr(client.client, end)(transaction)
        equal(client.next().body, b"commit", "body")
        true(client.inbox.messages.empty(), "an aborted message came")


@check
def heart_beats_keep_a_connection(options):
    def idle(interval):
        with Client(options, heartbeats=(500 * interval, 500 * interval)) as client:
            destination = "/topic/" + unique("topic")
            client.client.subscribe(destination, id="s")
            try:
                client.inbox.messages.get(timeout=4 * interval)
            except queues.Empty:
                pass
            true(client.client.is_connected(), "it ended")
            client.send(destination, "still here")
            equal(client.next().body, b"still here", "body")

    survives(idle)


@check
def stomp_over_websocket(options):
    host, port = options.stomp_websocket.rsplit(":", 1)
    inbox = Inbox()
    client = stomp.WSConnection([(host, int(port))], vhost="/", ws_path="/ws", header={})
    client.set_listener("", inbox)
    client.connect("guest", "guest", wait=True)
    destination = "/queue/" + unique("queue")
    client.subscribe(destination, id="1", ack="auto")
    for size in [0, 1, 70_000]:
        client.send(destination, "x" * size, persistent="true")
        equal(inbox.messages.get(timeout=PATIENCE).body, "x" * size, "body")
    client.disconnect()


@check
def mqtt_over_websocket(options):
    host, port = options.mqtt_websocket.rsplit(":", 1)
    for path in ["/mqtt", "/"]:
        for version in [paho.MQTTv31, paho.MQTTv311, paho.MQTTv5]:
            inbox, ready = queues.Queue(), queues.Queue()
            client = paho.Client(
                paho.CallbackAPIVersion.VERSION2, unique("paho"), protocol=version, transport="websockets"
            )
            client.ws_set_options(path=path)
            client.on_message = lambda _, __, message: inbox.put(message.payload)
            client.on_connect = lambda client, *_: client.subscribe("over/" + path.strip("/") + str(int(version)), 1)
            client.on_subscribe = lambda *_: ready.put(None)
            client.connect(host, int(port))
            client.loop_start()
            ready.get(timeout=PATIENCE)
            for size in BODY_SIZES:
                body = random_body(size)
                client.publish("over/" + path.strip("/") + str(int(version)), body, 1)
                equal(inbox.get(timeout=PATIENCE), body, f"body of {size} bytes")
            client.disconnect()
            client.loop_stop()
