"""AMQP 0-9-1 with pika."""

import datetime
import decimal
import threading
import time

import pika
from pika import exceptions

from checks import BODY_SIZES, PATIENCE, equal, random_body, survives, true, unique

checks = []


def check(function):
    checks.append(function)
    return function


class Client:
    """A connection and a channel; both end with the `with` block."""

    def __init__(self, options, **parameters):
        url = pika.URLParameters(options.amqp)
        for name, value in parameters.items():
            setattr(url, name, value)
        self.connection = pika.BlockingConnection(url)
        self.channel = self.connection.channel()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.connection.is_open:
            self.connection.close()

    def queue(self, **arguments):
        """A server-named queue that goes with the connection."""
        return self.channel.queue_declare("", exclusive=True, **arguments).method.queue

    def get(self, queue):
        method, properties, body = self.channel.basic_get(queue, auto_ack=True)
        true(method is not None, f"queue {queue} is empty")
        return method, properties, body

    def ready(self, queue):
        return self.channel.queue_declare(queue, passive=True).method.message_count

    def consume(self, queue):
        """The deliveries of a consumer, each a triple."""
        for delivery in self.channel.consume(queue, inactivity_timeout=PATIENCE):
            true(delivery[0] is not None, "no delivery in time")
            yield delivery


def refused(kind, code, action, *arguments, **named):
    try:
        action(*arguments, **named)
    except kind as error:
        equal(error.reply_code, code, "reply code")
        return
    raise AssertionError(f"it was not refused with {code}")


@check
def server_says_who_it_is(options):
    with Client(options) as client:
        true(client.connection.publisher_confirms_supported, "no publisher confirms")
        true(client.connection.basic_nack_supported, "no basic.nack")
        true(client.connection.consumer_cancel_notify_supported, "no consumer cancel notify")
        true(client.connection.exchange_exchange_bindings_supported, "no exchange to exchange bindings")


@check
def wrong_password_and_unknown_virtual_host_are_told_apart(options):
    for parameters, kind in [
        ({"credentials": pika.PlainCredentials("guest", "wrong")}, exceptions.ProbableAuthenticationError),
        ({"virtual_host": "no-such-host"}, exceptions.ProbableAccessDeniedError),
    ]:
        try:
            Client(options, **parameters).connection.close()
        except kind:
            continue
        raise AssertionError(f"{parameters}: no {kind.__name__}")


@check
def an_idle_connection_is_kept_by_heartbeats(options):
    def idle(interval):
        with Client(options, heartbeat=interval) as client:
            # Nothing but heartbeats for so long is what is tested.
            client.connection.sleep(4 * interval)
            client.queue()

    survives(idle)


@check
def direct_fanout_topic_and_headers_route(options):
    with Client(options) as client:
        channel = client.channel
        rows = [
            ("direct", "a", None, [("a", None, True), ("b", None, False)]),
            ("fanout", "", None, [("a", None, True), ("", None, True)]),
            ("topic", "a.*.#", None, [("a.b", None, True), ("a.b.c.d", None, True), ("a", None, False)]),
            (
                "headers",
                "",
                {"x-match": "all", "kind": "report", "pages": 3},
                [("", {"kind": "report", "pages": 3}, True), ("", {"kind": "report"}, False)],
            ),
        ]
        for kind, key, arguments, messages in rows:
            exchange = unique(kind)
            channel.exchange_declare(exchange, kind, auto_delete=True)
            queue = client.queue()
            channel.queue_bind(queue, exchange, key, arguments=arguments)
            for routing_key, headers, routed in messages:
                channel.basic_publish(exchange, routing_key, b"x", pika.BasicProperties(headers=headers))
                method, _, _ = channel.basic_get(queue, auto_ack=True)
                equal(method is not None, routed, f"{kind}: whether {routing_key!r} {headers} is routed")


@check
def queues_are_declared_inspected_purged_and_deleted(options):
    with Client(options) as client:
        channel, queue = client.channel, unique("queue")
        declared = channel.queue_declare(queue, durable=True).method
        equal((declared.queue, declared.message_count, declared.consumer_count), (queue, 0, 0), "a new queue")
        channel.confirm_delivery()
        for _ in range(5):
            channel.basic_publish("", queue, b"x")
        equal(client.ready(queue), 5, "ready messages")
        equal(channel.queue_purge(queue).method.message_count, 5, "purged messages")
        channel.basic_publish("", queue, b"x")
        equal(channel.queue_delete(queue).method.message_count, 1, "messages deleted with the queue")
        true(channel.queue_declare("").method.queue.startswith("amq.gen-"), "a server-named queue")


@check
def exclusive_and_auto_delete_queues_go(options):
    with Client(options) as client:
        exclusive, auto_delete = unique("exclusive"), unique("auto-delete")
        with Client(options) as owner:
            owner.channel.queue_declare(exclusive, exclusive=True)
            owner.channel.queue_declare(auto_delete, auto_delete=True)
            owner.channel.basic_consume(auto_delete, lambda *_: None)
            other = client.connection.channel()
            refused(exceptions.ChannelClosedByBroker, 405, other.queue_declare, exclusive, passive=True)
        for queue in [exclusive, auto_delete]:
            other = client.connection.channel()
            refused(exceptions.ChannelClosedByBroker, 404, other.queue_declare, queue, passive=True)


@check
def confirms_and_returns(options):
    with Client(options) as client:
        channel, exchange = client.channel, unique("direct")
        channel.exchange_declare(exchange, "direct", auto_delete=True)
        queue = client.queue()
        channel.queue_bind(queue, exchange, "routed")
        channel.confirm_delivery()
        for _ in range(50):
            channel.basic_publish(exchange, "routed", b"x", mandatory=True)
        equal(client.ready(queue), 50, "routed messages")
        try:
            channel.basic_publish(exchange, "nobody", b"back", pika.BasicProperties(message_id="m"), mandatory=True)
        except exceptions.UnroutableError as error:
            [returned] = error.messages
            equal((returned.method.reply_code, returned.method.reply_text), (312, "NO_ROUTE"), "why it came back")
            equal((returned.properties.message_id, returned.body), ("m", b"back"), "what came back")
        else:
            raise AssertionError("an unroutable message was not returned")


@check
def every_body_is_unchanged(options):
    with Client(options) as client:
        queue = client.queue()
        client.channel.confirm_delivery()
        for size in BODY_SIZES:
            body = random_body(size)
            client.channel.basic_publish("", queue, body)
            true(client.get(queue)[2] == body, f"body of {size} bytes")


@check
def every_property_and_header_type_is_unchanged(options):
    with Client(options) as client:
        queue = client.queue()
        headers = {
            "text": "grüße, 世界",
            "bytes": b"\x00\xff",
            "true": True,
            "int": -7,
            "long": 1 << 40,
            "decimal": decimal.Decimal("123.45"),
            "time": datetime.datetime(2023, 11, 14, 22, 13, 20),
            "none": None,
            "list": [1, "two", None, [3]],
            "table": {"inner": {"deep": "x"}},
        }
        sent = pika.BasicProperties(
            content_type="application/json", content_encoding="gzip", headers=headers, delivery_mode=2, priority=5,
            correlation_id="correlation", reply_to="reply", expiration="600000", message_id="message",
            timestamp=1_700_000_000, type="type", user_id="guest", app_id="app", cluster_id="cluster",
        )
        client.channel.basic_publish("", queue, b"{}", sent)
        _, got, _ = client.get(queue)
        for name in headers:
            equal(got.headers[name], headers[name], f"header {name}")
        equal(got, sent, "properties")


@check
def consumed_in_order_with_prefetch(options):
    with Client(options) as client:
        queue = client.queue()
        for number in range(200):
            client.channel.basic_publish("", queue, str(number).encode())
        client.channel.basic_qos(prefetch_count=10)
        deliveries = client.consume(queue)
        for number in range(10):
            method, _, body = next(deliveries)
            equal((body, method.delivery_tag), (str(number).encode(), number + 1), "delivery")
        equal(client.ready(queue), 190, "messages that were not handed out")
        client.channel.basic_ack(10, multiple=True)
        for number in range(10, 200):
            method, _, body = next(deliveries)
            equal(body, str(number).encode(), "body")
            client.channel.basic_ack(method.delivery_tag)


@check
def nacked_messages_return_to_their_place(options):
    with Client(options) as client:
        channel, queue = client.channel, client.queue()
        for number in range(5):
            channel.basic_publish("", queue, str(number).encode())
        tags = [channel.basic_get(queue)[0].delivery_tag for _ in range(4)]
        channel.basic_nack(tags[2], requeue=True)
        channel.basic_reject(tags[0], requeue=True)
        channel.basic_reject(tags[3], requeue=False)
        got = [(body, method.redelivered) for method, _, body in (client.get(queue) for _ in range(3))]
        equal(got, [(b"0", True), (b"2", True), (b"4", False)], "what is left")
        channel.basic_recover(requeue=True)
        method, _, body = client.get(queue)
        equal((body, method.redelivered), (b"1", True), "recovered")


@check
def a_deleted_queue_cancels_its_consumer(options):
    with Client(options) as client:
        queue = unique("queue")
        client.channel.queue_declare(queue)
        cancelled = []
        client.channel.add_on_cancel_callback(cancelled.append)
        client.channel.basic_consume(queue, lambda *_: None, consumer_tag="tag")
        client.connection.channel().queue_delete(queue)
        deadline = time.monotonic() + PATIENCE
        while not cancelled and time.monotonic() < deadline:
            client.connection.process_data_events(time_limit=0.1)
        equal([frame.method.consumer_tag for frame in cancelled], ["tag"], "cancelled consumers")


@check
def two_consumers_compete(options):
    count, prefetch, seen, lock = 200, 2, {}, threading.Lock()
    with Client(options) as client:
        queue = unique("competing")
        client.channel.queue_declare(queue)
        ready, shared = threading.Barrier(3), threading.Barrier(2)

        def consume():
            with Client(options) as member:
                member.channel.basic_qos(prefetch_count=prefetch)
                generator = member.channel.consume(queue, inactivity_timeout=0.2)
                next(generator)  # nothing is there yet: only now it is a consumer for sure
                ready.wait(PATIENCE)
                held = []
                for method, _, body in generator:
                    if method is not None:
                        with lock:
                            seen[body] = seen.get(body, 0) + 1
                        held.append(method.delivery_tag)
                        if len(held) < prefetch:
                            continue
                        if len(held) == prefetch:
                            # Nobody acknowledges before both have their share, however slow one of them is.
                            shared.wait(PATIENCE)
                            member.channel.basic_ack(method.delivery_tag, multiple=True)
                        else:
                            member.channel.basic_ack(method.delivery_tag)
                    if len(seen) == count:
                        return

        members = [threading.Thread(target=consume) for _ in range(2)]
        for member in members:
            member.start()
        ready.wait(PATIENCE)
        for number in range(count):
            client.channel.basic_publish("", queue, str(number).encode())
        for member in members:
            member.join(PATIENCE)
        equal((len(seen), set(seen.values())), (count, {1}), "messages, deliveries of each")
        true(not shared.broken, "both have a share")
        client.channel.queue_delete(queue)


@check
def channel_errors_have_their_codes(options):
    with Client(options) as client:
        queue = client.queue()
        durable = unique("durable")
        client.channel.queue_declare(durable, durable=True)
        consumed = unique("consumed")
        client.channel.queue_declare(consumed, auto_delete=True)
        client.channel.basic_consume(consumed, lambda *_: None, exclusive=True)
        for code, action in [
            (404, lambda channel: channel.queue_declare(unique("missing"), passive=True)),
            (404, lambda channel: channel.exchange_declare(unique("missing"), passive=True)),
            (404, lambda channel: channel.queue_bind(queue, unique("missing"), "k")),
            (404, lambda channel: channel.basic_get(unique("missing"))),
            (404, lambda channel: channel.basic_consume(unique("missing"), lambda *_: None)),
            (406, lambda channel: channel.queue_declare(durable, durable=False)),
            (406, lambda channel: channel.exchange_declare("amq.direct", "fanout", durable=True)),
            (406, lambda channel: channel.exchange_declare(unique("strange"), "no-such-type")),
            (403, lambda channel: channel.queue_declare("amq.mine")),
            (403, lambda channel: channel.exchange_declare("amq.mine", "fanout")),
            (403, lambda channel: channel.basic_consume(consumed, lambda *_: None)),
        ]:
            refused(exceptions.ChannelClosedByBroker, code, action, client.connection.channel())
        client.channel.queue_delete(durable)


@check
def connection_errors_have_their_codes(options):
    def twice(channel):
        queue = channel.queue_declare("", exclusive=True).method.queue
        for _ in range(2):
            channel.connection.process_data_events()
            channel._impl.basic_consume(queue, lambda *_: None, consumer_tag="tag")
            channel._impl._consumers.clear()  # pika itself refuses a tag that it knows
        channel.queue_declare("", exclusive=True)

    for code, action in [
        (530, twice),
        (540, lambda channel: channel.basic_qos(prefetch_size=1)),
        (540, lambda channel: channel.basic_recover(requeue=False)),
    ]:
        with Client(options) as client:
            refused(exceptions.ConnectionClosedByBroker, code, action, client.channel)


@check
def a_transaction_takes_effect_as_a_whole_when_it_commits(options):
    with Client(options) as client, Client(options) as other:
        channel, queue = client.channel, unique("tx")
        channel.queue_declare(queue, durable=True)
        try:
            channel.basic_publish("", queue, b"leased", pika.BasicProperties(delivery_mode=2))
            method, _, _ = channel.basic_get(queue)
            channel.tx_select()
            for body in (b"one", b"two"):
                channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2))
            channel.basic_ack(method.delivery_tag)
            equal(other.ready(queue), 0, "messages before the commit")
            channel.tx_rollback()
            equal(other.ready(queue), 0, "messages after the rollback")
            for body in (b"three", b"four"):
                channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2))
            channel.basic_ack(method.delivery_tag)
            channel.tx_commit()
            equal([other.get(queue)[2], other.get(queue)[2]], [b"three", b"four"], "what was committed")
            # The acknowledgement was committed too: closing brings nothing back.
            channel.close()
            equal(other.ready(queue), 0, "messages after the channel's end")
        finally:
            other.channel.queue_delete(queue)
        refused(exceptions.ChannelClosedByBroker, 406, other.channel.tx_commit)
