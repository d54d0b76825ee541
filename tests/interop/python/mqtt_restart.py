"""paho-mqtt sessions that live through the broker's death: both directions, QoS 1 and 2."""

import collections
import queue as queues
import threading

from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from checks import PATIENCE, ask, equal, true, unique

checks = []


def check(function):
    checks.append(function)
    return function


class Client:
    """A client of a session that is kept, which connects again by itself."""

    def __init__(self, options, version, manual_ack=False):
        self.inbox, self.connected, self.granted = queues.Queue(), queues.Queue(), queues.Queue()
        self.confirmed = queues.Queue()
        arguments = {} if version == paho.MQTTv5 else {"clean_session": False}
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, unique("paho"), protocol=version, manual_ack=manual_ack, **arguments
        )
        self.client.max_queued_messages_set(0)
        self.client.on_message = lambda _, __, message: self.inbox.put(message)
        self.client.on_connect = lambda _, __, flags, ___, ____: self.connected.put(flags.session_present)
        self.client.on_subscribe = lambda *_: self.granted.put(None)
        self.client.on_publish = lambda _, __, mid, ___, ____: self.confirmed.put(mid)
        more = {}
        if version == paho.MQTTv5:
            more = {"clean_start": False, "properties": Properties(PacketTypes.CONNECT)}
            more["properties"].SessionExpiryInterval = 600
        host, port = options.mqtt.rsplit(":", 1)
        self.client.connect(host, int(port), keepalive=60, **more)
        self.client.loop_start()
        equal(self.connected.get(timeout=PATIENCE), False, "session present at first")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.disconnect()
        self.client.loop_stop()

    def subscribe(self, topic, qos):
        self.client.subscribe(topic, qos)
        self.granted.get(timeout=PATIENCE)

    def next(self):
        return self.inbox.get(timeout=PATIENCE)


def kill_and_start():
    ask("kill")
    ask("start")


@check
def unacknowledged_messages_come_again_with_the_same_packet_ids(options):
    for version in [paho.MQTTv311, paho.MQTTv5]:
        with Client(options, version, manual_ack=True) as subscriber, Client(options, version) as publisher:
            topic = unique("topic")
            subscriber.subscribe(topic, 1)
            for number in range(10):
                publisher.client.publish(topic, str(number), 1)
            first = [subscriber.next() for _ in range(10)]
            equal([int(message.payload) for message in first], list(range(10)), "order")
            # Acknowledged is acknowledged: only the others come again.
            for message in first[:3]:
                subscriber.client.ack(message.mid, 1)
            for _ in range(10):
                publisher.confirmed.get(timeout=PATIENCE)
            # A message behind the acknowledgements on the same connection: the broker has read them.
            subscriber.client.publish(topic, "10", 1)
            subscriber.confirmed.get(timeout=PATIENCE)
            first.append(subscriber.next())
            kill_and_start()
            equal(subscriber.connected.get(timeout=PATIENCE), True, "session present")
            again = [subscriber.next() for _ in range(8)]
            equal([message.mid for message in again], [message.mid for message in first[3:]], "packet identifiers")
            equal([message.payload for message in again], [message.payload for message in first[3:]], "bodies")
            true(all(message.dup for message in again), "one is not marked as a duplicate")
            for message in again:
                subscriber.client.ack(message.mid, 1)


def arrives_through_a_kill(options, version, qos):
    with Client(options, version) as subscriber, Client(options, version) as publisher:
        topic = unique("topic")
        subscriber.subscribe(topic, qos)
        counts = collections.Counter()

        def take():
            body = subscriber.next().payload.decode()
            counts[body] += 1
            return body

        def send(first, end):
            for number in range(first, end):
                publisher.client.publish(topic, str(number), qos)

        send(0, 100)
        while len(counts) < 50:
            take()
        send(100, 200)
        sending = threading.Thread(target=send, args=(200, 300))
        sending.start()
        kill_and_start()
        sending.join()
        equal(subscriber.connected.get(timeout=PATIENCE), True, "session present of the subscriber")
        equal(publisher.connected.get(timeout=PATIENCE), True, "session present of the publisher")
        while len(counts) < 300:
            take()
        publisher.client.publish(topic, "last", qos)
        while take() != "last":
            pass
        for number in range(300):
            count = counts[str(number)]
            true(count >= 1 if qos == 1 else count == 1, f"QoS {qos}: {number} came {count} times")


@check
def every_message_of_qos_1_arrives_through_a_kill(options):
    arrives_through_a_kill(options, paho.MQTTv311, 1)


@check
def every_message_of_qos_2_arrives_once_through_a_kill(options):
    arrives_through_a_kill(options, paho.MQTTv311, 2)


@check
def every_message_of_5_and_qos_1_arrives_through_a_kill(options):
    arrives_through_a_kill(options, paho.MQTTv5, 1)


@check
def every_message_of_5_and_qos_2_arrives_once_through_a_kill(options):
    arrives_through_a_kill(options, paho.MQTTv5, 2)
