"""MQTT 3.1.1 and 5.0 with paho-mqtt."""

import queue as queues
import time

from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from checks import BODY_SIZES, PATIENCE, equal, random_body, true, unique

checks = []


def check(function):
    checks.append(function)
    return function


class Client:
    """A connected client; its messages go to `inbox`."""

    def __init__(self, options, version=paho.MQTTv311, client_id=None, clean=True, properties=None):
        self.inbox, self.acks, self.connected = queues.Queue(), queues.Queue(), queues.Queue()
        arguments = {} if version == paho.MQTTv5 else {"clean_session": clean}
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id or unique("paho"), protocol=version, **arguments
        )
        self.client.on_message = lambda _, __, message: self.inbox.put(message)
        self.client.on_subscribe = lambda _, __, mid, codes, ___: self.acks.put([code.value for code in codes])
        self.client.on_unsubscribe = lambda *_: self.acks.put(None)
        self.client.on_connect = lambda _, __, flags, code, properties: self.connected.put((flags, code, properties))
        host, port = options.mqtt.rsplit(":", 1)
        more = {"clean_start": clean, "properties": properties} if version == paho.MQTTv5 else {}
        self.client.connect(host, int(port), keepalive=60, **more)
        self.client.loop_start()
        flags, self.code, self.properties = self.connected.get(timeout=PATIENCE)
        self.session_present = flags.session_present

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.disconnect()
        self.client.loop_stop()

    def subscribe(self, *arguments, **named):
        self.client.subscribe(*arguments, **named)
        return self.acks.get(timeout=PATIENCE)

    def publish(self, topic, body, qos=1, **named):
        self.client.publish(topic, body, qos, **named).wait_for_publish(PATIENCE)

    def next(self):
        return self.inbox.get(timeout=PATIENCE)


@check
def qos_0_and_1_of_both_versions(options):
    for version in [paho.MQTTv31, paho.MQTTv311, paho.MQTTv5]:
        with Client(options, version, client_id=unique("x")[-20:]) as client:
            topic = unique("topic")
            for qos in [0, 1]:
                equal(client.subscribe(topic, qos), [qos], "granted QoS")
                for number in range(100):
                    client.publish(topic, str(number), qos)
                for number in range(100):
                    got = client.next()
                    equal(
                        (got.topic, got.payload, got.qos, got.retain), (topic, str(number).encode(), qos, False), "message"
                    )


@check
def every_body_is_unchanged(options):
    for version in [paho.MQTTv311, paho.MQTTv5]:
        with Client(options, version) as client:
            topic = unique("topic") + "/body"
            client.subscribe(topic, 1)
            for size in BODY_SIZES:
                body = random_body(size)
                client.publish(topic, body)
                true(client.next().payload == body, f"body of {size} bytes")


@check
def wildcards_match(options):
    with Client(options) as client:
        root = unique("w")
        client.subscribe([(root + "/+/temperature", 1), (root + "/log/#", 1)])
        for topic in ["/a/temperature", "/a/b/temperature", "/log", "/log/x/y", "/other", "//temperature"]:
            client.publish(root + topic, topic)
        got = [client.next().payload.decode() for _ in range(4)]
        equal(got, ["/a/temperature", "/log", "/log/x/y", "//temperature"], "what matched")


@check
def a_persistent_session_gets_what_was_published_while_away(options):
    for version in [paho.MQTTv311, paho.MQTTv5]:
        client_id, topic = unique("session"), unique("topic")
        properties = None
        if version == paho.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 600
        arguments = {"client_id": client_id, "clean": False, "properties": properties}
        with Client(options, version, **arguments) as client:
            equal(client.session_present, False, "session present at first")
            client.subscribe(topic, 1)
        with Client(options) as publisher:
            for number in range(50):
                publisher.publish(topic, str(number))
        with Client(options, version, **arguments) as client:
            equal(client.session_present, True, "session present")
            equal([client.next().payload for _ in range(50)], [str(n).encode() for n in range(50)], "messages")
        with Client(options, version, client_id=client_id, clean=True) as client:
            equal(client.session_present, False, "session present for a clean session")


@check
def properties_of_5_0_are_unchanged(options):
    with Client(options, paho.MQTTv5) as client:
        topic = unique("topic")
        client.subscribe(topic, options=SubscribeOptions(qos=1))
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType = "application/json"
        properties.ResponseTopic = "reply/here"
        properties.CorrelationData = b"\x00\xff"
        properties.PayloadFormatIndicator = 1
        properties.UserProperty = [("a", "1"), ("b", "grüße"), ("a", "2")]
        client.publish(topic, "{}", properties=properties)
        got = client.next().properties
        for name in ["ContentType", "ResponseTopic", "CorrelationData", "PayloadFormatIndicator", "UserProperty"]:
            equal(getattr(got, name), getattr(properties, name), name)


@check
def no_local_spares_the_publisher(options):
    with Client(options, paho.MQTTv5) as client, Client(options, paho.MQTTv5) as other:
        topic = unique("topic")
        client.subscribe(topic, options=SubscribeOptions(qos=1, noLocal=True))
        client.publish(topic, "mine")
        other.publish(topic, "theirs")
        equal(client.next().payload, b"theirs", "body")


@check
def unsubscribing_ends_deliveries(options):
    with Client(options, paho.MQTTv5) as client:
        topic = unique("topic")
        client.subscribe([(topic + "/a", SubscribeOptions(1)), (topic + "/b", SubscribeOptions(1))])
        client.client.unsubscribe(topic + "/a")
        client.acks.get(timeout=PATIENCE)
        client.publish(topic + "/a", "x")
        client.publish(topic + "/b", "y")
        equal(client.next().payload, b"y", "body")


@check
def wrong_password_is_refused(options):
    refused = queues.Queue()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, unique("paho"), protocol=paho.MQTTv5)
    client.username_pw_set("guest", "wrong")
    client.on_connect = lambda _, __, ___, code, ____: refused.put(code.value)
    host, port = options.mqtt.rsplit(":", 1)
    client.connect(host, int(port))
    client.loop_start()
    equal(refused.get(timeout=PATIENCE), 0x86, "reason code")
    client.disconnect()
    client.loop_stop()


@check
def qos_2_both_ways_in_order(options):
    for version in [paho.MQTTv31, paho.MQTTv311, paho.MQTTv5]:
        with Client(options, version, client_id=unique("x")[-20:]) as client:
            topic = unique("topic")
            equal(client.subscribe(topic, 2), [2], "granted QoS")
            for number in range(200):
                client.client.publish(topic, str(number), 2)
            for number in range(200):
                got = client.next()
                equal((got.payload, got.qos), (str(number).encode(), 2), "message")


@check
def retained_messages_come_to_later_subscribers_until_they_are_cleared(options):
    root = unique("retained")
    with Client(options) as publisher:
        for qos in [0, 1, 2]:
            publisher.client.publish(f"{root}/{qos}", f"value {qos}", qos, retain=True).wait_for_publish(PATIENCE)
        publisher.publish(f"{root}/1", "", 1, retain=True)
    for version in [paho.MQTTv311, paho.MQTTv5]:
        with Client(options, version) as client:
            client.subscribe(root + "/+", 2)
            got = sorted((m.topic, m.payload, m.qos, m.retain) for m in [client.next() for _ in range(2)])
            equal(got, [(f"{root}/0", b"value 0", 0, True), (f"{root}/2", b"value 2", 2, True)], "retained")


@check
def retain_handling_and_retain_as_published(options):
    topic = unique("topic")
    with Client(options, paho.MQTTv5) as client:
        client.publish(topic, "first", 1, retain=True)
        client.subscribe(topic, options=SubscribeOptions(qos=1, retainHandling=2))
        client.publish(topic, "second", 1, retain=True)
        got = client.next()
        equal((got.payload, got.retain), (b"second", False), "only what is new, without its flag")
        client.subscribe(topic, options=SubscribeOptions(qos=1, retainAsPublished=True, retainHandling=1))
        client.publish(topic, "third", 1, retain=True)
        got = client.next()
        equal((got.payload, got.retain), (b"third", True), "it was subscribed before; the flag as published")


@check
def a_will_is_published_when_the_connection_is_lost(options):
    for version in [paho.MQTTv311, paho.MQTTv5]:
        topic = unique("will")
        with Client(options) as watcher:
            watcher.subscribe(topic, 1)
            host, port = options.mqtt.rsplit(":", 1)
            for goodbye in [True, False]:
                client = paho.Client(paho.CallbackAPIVersion.VERSION2, unique("paho"), protocol=version)
                client.will_set(topic, f"gone {goodbye}", 1)
                connected = queues.Queue()
                client.on_connect = lambda *_: connected.put(None)
                client.connect(host, int(port))
                client.loop_start()
                connected.get(timeout=PATIENCE)
                if goodbye:
                    client.disconnect()
                else:
                    client.socket().shutdown(2)
                client.loop_stop()
            equal(watcher.next().payload, b"gone False", "the will of the lost one only")


@check
def a_shared_subscription_gives_each_message_to_one_member(options):
    topic, group = unique("topic"), unique("group")
    with Client(options, paho.MQTTv5) as one, Client(options, paho.MQTTv311) as two:
        for member in [one, two]:
            equal(member.subscribe(f"$share/{group}/{topic}/#", 1), [1], "granted QoS")
        with Client(options) as publisher:
            for number in range(100):
                publisher.publish(f"{topic}/x", str(number))
        # Who of them gets which is the broker's choice, but each gets some.
        got = [int(member.next().payload) for member in [one, two]]
        deadline = time.monotonic() + PATIENCE
        while len(got) < 100:
            true(time.monotonic() < deadline, f"only {len(got)} messages came")
            for member in [one, two]:
                try:
                    got.append(int(member.inbox.get(timeout=0.01).payload))
                except queues.Empty:
                    pass
        equal(sorted(got), list(range(100)), "all messages once")


@check
def the_broker_tells_about_itself(options):
    with Client(options) as client:
        client.subscribe("$SYS/broker/#", 0)
        seen = {}
        while "$SYS/broker/clients/connected" not in seen or "$SYS/broker/uptime" not in seen:
            got = client.next()
            seen[got.topic] = got.payload
        true(int(seen["$SYS/broker/clients/connected"]) >= 1, "connected clients")
        true(seen["$SYS/broker/uptime"].endswith(b" seconds"), "uptime")
