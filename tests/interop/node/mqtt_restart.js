// MQTT.js sessions that live through the broker's death: both directions, QoS 1 and 2.
'use strict';

const assert = require('node:assert/strict');
const mqtt = require('mqtt');
const { Inbox, ask, unique } = require('./checks');

const versions = [4, 5];

function connect(options, after, more) {
  const client = mqtt.connect(`mqtt://${options.mqtt}`, {
    clientId: unique('mqttjs'), clean: false, reconnectPeriod: 100, connectTimeout: 120_000,
    ...(more.protocolVersion === 5 && { properties: { sessionExpiryInterval: 600 } }), ...more,
  });
  // Nobody listens for a while: that is what is tested.
  client.on('error', () => {});
  const connacks = new Inbox();
  client.on('connect', (connack) => connacks.put(connack));
  after(() => client.endAsync(true));
  return { client, connacks };
}

async function killAndStart() {
  await ask('kill');
  await ask('start');
}

async function arrivesThroughAKill(options, after, protocolVersion, qos) {
  const subscriber = connect(options, after, { protocolVersion });
  const publisher = connect(options, after, { protocolVersion });
  const [topic, counts, inbox] = [unique('topic'), new Map(), new Inbox()];
  subscriber.client.on('message', (_, payload) => {
    const body = payload.toString();
    counts.set(body, (counts.get(body) ?? 0) + 1);
    inbox.put(body);
  });
  await subscriber.connacks.next();
  await subscriber.client.subscribeAsync(topic, { qos });
  const sent = [];
  // What is published while MQTT.js looks through its store is dropped, unsent, when the connection ends then.
  const publish = (body) => publisher.client.publishAsync(topic, body, { qos }).catch((error) => {
    if (error.message !== 'Connection closed') throw error;
    return publish(body);
  });
  const send = (from, to) => {
    for (let i = from; i < to; i++) sent.push(publish(String(i)));
  };
  send(0, 100);
  for (let i = 0; i < 50; i++) await inbox.next();
  send(100, 200);
  const killed = killAndStart();
  send(200, 300);
  await killed;
  assert.equal((await subscriber.connacks.next()).sessionPresent, true);
  send(300, 310);
  await Promise.all(sent);
  // The last one confirmed is not yet the last one that arrives.
  while (counts.size < 310) await inbox.next();
  await publisher.client.publishAsync(topic, 'last', { qos });
  while ((await inbox.next()) !== 'last');
  for (let i = 0; i < 310; i++) {
    const count = counts.get(String(i));
    assert.ok(qos === 1 ? count >= 1 : count === 1, `QoS ${qos}: ${i} came ${count} times`);
  }
}

module.exports = {
  async unacknowledged_messages_come_again_with_the_same_packet_ids(options, after) {
    for (const protocolVersion of versions) {
      const { client, connacks } = connect(options, after, { protocolVersion });
      const seen = new Inbox();
      const held = [];
      let holds = true;
      client.handleMessage = (packet, done) => {
        seen.put([packet.messageId, packet.payload.toString(), packet.dup]);
        if (holds) held.push(done);
        else done();
      };
      assert.equal((await connacks.next()).sessionPresent, false);
      const topic = unique('topic');
      await client.subscribeAsync(topic, { qos: 1 });
      const publisher = connect(options, after, { protocolVersion });
      for (let i = 0; i < 10; i++) await publisher.client.publishAsync(topic, String(i), { qos: 1 });
      // MQTT.js handles one message at a time: what is behind the first one waits.
      const [id, body] = await seen.next();
      assert.equal(body, '0');
      await ask('kill');
      // Acknowledged to nobody: the connection is gone, and only now the client looks at it again.
      holds = false;
      held.forEach((done) => done());
      await ask('start');
      assert.equal((await connacks.next()).sessionPresent, true);
      let again;
      do again = await seen.next(); while (again[1] !== '0');
      assert.deepEqual(again, [id, '0', true], 'the first message again');
      for (let i = 1; i < 10; i++) {
        const [next, text] = await seen.next();
        assert.deepEqual([next, text], [id + i, String(i)], 'packet identifiers and order');
      }
      await publisher.client.publishAsync(topic, 'last', { qos: 1 });
      assert.equal((await seen.next())[1], 'last');
      await client.endAsync(true);
      await publisher.client.endAsync(true);
    }
  },

  every_message_of_311_and_qos_1_arrives_through_a_kill: (options, after) => arrivesThroughAKill(options, after, 4, 1),

  every_message_of_311_and_qos_2_arrives_once_through_a_kill: (options, after) => arrivesThroughAKill(options, after, 4, 2),

  every_message_of_5_and_qos_1_arrives_through_a_kill: (options, after) => arrivesThroughAKill(options, after, 5, 1),

  every_message_of_5_and_qos_2_arrives_once_through_a_kill: (options, after) => arrivesThroughAKill(options, after, 5, 2),
};
