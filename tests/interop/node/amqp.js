// AMQP 0-9-1 with amqplib.
'use strict';

const assert = require('node:assert/strict');
const path = require('node:path');
const amqplib = require('amqplib');
const defs = require(path.join(path.dirname(require.resolve('amqplib')), 'lib/defs.js'));
const { Inbox, unique, bodySizes, randomBytes, once } = require('./checks');

async function connect(options, after, url = options.amqp) {
  const connection = await amqplib.connect(url);
  connection.on('error', () => {}); // a check that wants it listens itself
  after(() => connection.close());
  return connection;
}

async function open(options, after) {
  const connection = await connect(options, after);
  const channel = await connection.createConfirmChannel();
  channel.on('error', () => {});
  return { connection, channel };
}

async function serverNamed(channel) {
  return (await channel.assertQueue('', { exclusive: true })).queue;
}

async function confirmed(channel, exchange, key, body, options = {}) {
  channel.publish(exchange, key, Buffer.from(body), options);
  await channel.waitForConfirms();
}

async function consume(channel, queue, options) {
  const inbox = new Inbox();
  const { consumerTag } = await channel.consume(queue, (message) => inbox.put(message), options);
  return { inbox, consumerTag };
}

const code = (wanted) => (error) => {
  assert.equal(error.code, wanted, `reply code of: ${error.message}`);
  return true;
};

// The action ends its channel with this code, and only that.
async function closesChannel(connection, wanted, action) {
  const channel = await connection.createChannel();
  const closed = once(channel, 'error');
  await assert.rejects(async () => action(channel), (error) => error.code === wanted || /closed|closing/i.test(error.message));
  code(wanted)((await closed)[0]);
  await (await connection.createChannel()).close();
}

// The action ends its connection with this code.
async function closesConnection(options, wanted, action) {
  const connection = await amqplib.connect(options.amqp);
  const closed = new Promise((resolve) => connection.on('error', resolve));
  const channel = await connection.createChannel();
  channel.on('error', () => {});
  await Promise.resolve()
    .then(() => action(channel))
    .catch(() => {});
  code(wanted)(await closed);
}

module.exports = {
  async server_says_who_it_is(options, after) {
    const { serverProperties } = (await connect(options, after)).connection;
    assert.ok(serverProperties.product && serverProperties.version);
    assert.equal(serverProperties.capabilities.publisher_confirms, true);
    assert.equal(serverProperties.capabilities.consumer_cancel_notify, true);
  },

  async wrong_password_and_unknown_virtual_host_are_refused(options, after) {
    await assert.rejects(connect(options, after, options.amqp.replace('guest:guest', 'guest:wrong')), /403/);
    await assert.rejects(connect(options, after, `${options.amqp}no-such-host`), /ConnectionClose|530/);
  },

  async exchanges_of_all_types_route(options, after) {
    const { channel } = await open(options, after);
    const rows = [
      ['direct', 'a', {}, [['a', {}, true], ['b', {}, false]]],
      ['fanout', '', {}, [['a', {}, true], ['', {}, true]]],
      ['topic', '*.b.#', {}, [['a.b', {}, true], ['a.b.c.d', {}, true], ['b', {}, false]]],
      ['headers', '', { 'x-match': 'any', a: 1, b: 'x' }, [['', { a: 1 }, true], ['', { b: 'y' }, false]]],
    ];
    for (const [type, key, args, messages] of rows) {
      const { exchange } = await channel.assertExchange(unique(type), type, { autoDelete: true });
      const queue = await serverNamed(channel);
      await channel.bindQueue(queue, exchange, key, args);
      for (const [routingKey, headers, routed] of messages) {
        await confirmed(channel, exchange, routingKey, 'x', { headers });
        assert.equal(Boolean(await channel.get(queue, { noAck: true })), routed, `${type} ${routingKey}`);
      }
    }
    const { exchange: front } = await channel.assertExchange(unique('front'), 'fanout', { autoDelete: true });
    const { exchange: back } = await channel.assertExchange(unique('back'), 'topic', { autoDelete: true });
    const queue = await serverNamed(channel);
    await channel.bindQueue(queue, back, 'x.*');
    await channel.bindExchange(back, front, '');
    await confirmed(channel, front, 'x.y', 'through two exchanges');
    assert.equal((await channel.get(queue, { noAck: true })).content.toString(), 'through two exchanges');
  },

  async queues_are_checked_purged_and_deleted(options, after) {
    const { connection, channel } = await open(options, after);
    const queue = unique('queue');
    assert.deepEqual(await channel.assertQueue(queue), { queue, messageCount: 0, consumerCount: 0 });
    for (let i = 0; i < 4; i++) channel.sendToQueue(queue, Buffer.from('x'), { persistent: true });
    await channel.waitForConfirms();
    assert.equal((await channel.checkQueue(queue)).messageCount, 4);
    assert.equal((await channel.purgeQueue(queue)).messageCount, 4);
    await confirmed(channel, '', queue, 'x');
    await closesChannel(connection, 406, (other) => other.deleteQueue(queue, { ifEmpty: true }));
    assert.equal((await channel.deleteQueue(queue)).messageCount, 1);
    await closesChannel(connection, 404, (other) => other.checkQueue(queue));
  },

  async exclusive_queue_is_its_connections_alone(options, after) {
    const owner = await open(options, after);
    const queue = await serverNamed(owner.channel);
    await closesChannel(await connect(options, after), 405, (channel) => channel.checkQueue(queue));
    await owner.connection.close();
    await closesChannel(await connect(options, after), 404, (channel) => channel.checkQueue(queue));
  },

  async every_body_is_unchanged(options, after) {
    const { channel } = await open(options, after);
    const queue = await serverNamed(channel);
    const { inbox } = await consume(channel, queue, { noAck: true });
    for (const size of bodySizes) {
      const body = randomBytes(size);
      channel.sendToQueue(queue, body);
      assert.ok((await inbox.next()).content.equals(body), `body of ${size} bytes`);
    }
  },

  async every_property_and_header_type_is_unchanged(options, after) {
    const { channel } = await open(options, after);
    const queue = await serverNamed(channel);
    const headers = {
      text: 'grüße, 世界', yes: true, no: false, int: -7, long: 2 ** 40, double: 0.25, nothing: null,
      bytes: Buffer.from([0, 255]), list: [1, 'two', null, [true]], table: { inner: { deep: 'x' } },
      time: { '!': 'timestamp', value: 1_700_000_001 }, decimal: { '!': 'decimal', value: { places: 2, digits: 12345 } },
    };
    const sent = {
      contentType: 'application/json', contentEncoding: 'gzip', headers, deliveryMode: 2, priority: 5,
      correlationId: 'correlation', replyTo: 'reply', expiration: '600000', messageId: 'message',
      timestamp: 1_700_000_000, type: 'type', userId: 'guest', appId: 'app',
    };
    await confirmed(channel, '', queue, '{}', sent);
    const { properties } = await channel.get(queue, { noAck: true });
    for (const name of Object.keys(sent)) assert.deepEqual(properties[name], sent[name], name);
  },

  async mandatory_return_precedes_its_confirm(options, after) {
    const { channel } = await open(options, after);
    const order = [];
    channel.on('return', (message) => order.push(`return ${message.fields.replyCode} ${message.properties.messageId}`));
    const done = [];
    for (const messageId of ['m1', 'm2']) {
      done.push(new Promise((resolve) => {
        channel.publish('amq.direct', unique('nobody'), Buffer.from('x'), { mandatory: true, messageId }, (nack) => {
          order.push(`${nack ? 'nack' : 'ack'} ${messageId}`);
          resolve();
        });
      }));
    }
    await Promise.all(done);
    for (const messageId of ['m1', 'm2']) {
      const returned = order.indexOf(`return 312 ${messageId}`);
      assert.ok(returned >= 0 && returned < order.indexOf(`ack ${messageId}`), `order: ${order}`);
    }
  },

  async prefetch_ack_nack_and_reject(options, after) {
    const { channel } = await open(options, after);
    const queue = await serverNamed(channel);
    for (let i = 0; i < 6; i++) channel.sendToQueue(queue, Buffer.from(String(i)));
    await channel.waitForConfirms();
    await channel.prefetch(4);
    const { inbox, consumerTag } = await consume(channel, queue);
    const held = [];
    for (let i = 0; i < 4; i++) held.push(await inbox.next());
    assert.equal((await channel.checkQueue(queue)).messageCount, 2);
    await channel.cancel(consumerTag);
    channel.nack(held[2]);
    channel.ack(held[0]);
    channel.reject(held[3], false);
    channel.nack(held[1]);
    const left = [];
    for (let message; (message = await channel.get(queue, { noAck: true })); ) {
      left.push(`${message.content} ${message.fields.redelivered}`);
    }
    assert.deepEqual(left, ['1 true', '2 true', '4 false', '5 false']);
  },

  async recover_redelivers(options, after) {
    const { channel } = await open(options, after);
    const queue = await serverNamed(channel);
    await confirmed(channel, '', queue, 'x');
    assert.equal((await channel.get(queue)).fields.redelivered, false);
    await channel.recover();
    assert.equal((await channel.get(queue)).fields.redelivered, true);
  },

  async a_deleted_queue_cancels_its_consumer(options, after) {
    const { connection, channel } = await open(options, after);
    const { queue } = await channel.assertQueue(unique('queue'));
    const { inbox } = await consume(channel, queue);
    await (await connection.createChannel()).deleteQueue(queue);
    assert.equal(await inbox.next(), null);
  },

  async two_consumers_compete(options, after) {
    const { channel } = await open(options, after);
    const { queue } = await channel.assertQueue(unique('queue'), { durable: true });
    const count = 200;
    const prefetch = 2;
    const members = [];
    for (let member = 0; member < 2; member++) {
      const other = await open(options, after);
      await other.channel.prefetch(prefetch);
      members.push({ channel: other.channel, inbox: (await consume(other.channel, queue)).inbox });
    }
    for (let i = 0; i < count; i++) channel.sendToQueue(queue, Buffer.from(String(i)), { persistent: true });
    // Nobody acknowledges yet, so that both have their share however slow one of them is.
    const held = [];
    for (const member of members) {
      for (let i = 0; i < prefetch; i++) held.push([member, await member.inbox.next()]);
    }
    const seen = new Map();
    const all = new Inbox();
    const take = (member, message) => {
      const body = message.content.toString();
      seen.set(body, (seen.get(body) ?? 0) + 1);
      member.channel.ack(message);
      if (seen.size === count) all.put(true);
    };
    for (const [member, message] of held) take(member, message);
    for (const member of members) {
      (async () => { for (let message; (message = await member.inbox.next()); ) take(member, message); })();
    }
    await all.next();
    assert.deepEqual([...new Set(seen.values())], [1]);
    await channel.deleteQueue(queue);
  },

  async channel_errors_have_their_codes(options, after) {
    const { connection, channel } = await open(options, after);
    const queue = await serverNamed(channel);
    const missing = unique('missing');
    const rows = [
      [404, (other) => other.checkExchange(missing)],
      [404, (other) => other.bindQueue(queue, missing, '')],
      [404, (other) => other.get(missing)],
      [404, (other) => other.consume(missing, () => {})],
      [406, (other) => other.assertExchange('amq.fanout', 'direct')],
      [403, (other) => other.assertQueue('amq.mine')],
      [403, (other) => other.assertExchange('amq.mine', 'fanout')],
      [403, (other) => other.bindQueue(queue, '', 'k')],
    ];
    for (const [wanted, action] of rows) await closesChannel(connection, wanted, action);
  },

  async a_transaction_takes_effect_when_it_commits(options, after) {
    const { connection, channel: other } = await open(options, after);
    const channel = await connection.createChannel();
    const queue = await serverNamed(other);
    // The library has no methods for class tx, but speaks it.
    const tx = (name) => channel.rpc(defs[`Tx${name}`], {}, defs[`Tx${name}Ok`]);
    await tx('Select');
    channel.sendToQueue(queue, Buffer.from('rolled back'));
    await tx('Rollback');
    channel.sendToQueue(queue, Buffer.from('committed'));
    assert.equal((await other.checkQueue(queue)).messageCount, 0);
    await tx('Commit');
    const message = await channel.get(queue);
    assert.equal(message.content.toString(), 'committed');
    channel.ack(message);
    await tx('Rollback');
    await channel.close();
    assert.equal((await other.get(queue)).fields.redelivered, true);
    await closesChannel(connection, 406, (closing) => closing.rpc(defs.TxCommit, {}, defs.TxCommitOk));
  },

  async connection_errors_have_their_codes(options) {
    await closesConnection(options, 530, async (channel) => {
      const queue = await serverNamed(channel);
      await channel.consume(queue, () => {}, { consumerTag: 'tag' });
      await channel.consume(queue, () => {}, { consumerTag: 'tag' });
    });
  },
};
