// MQTT 3.1.1 and 5.0 with MQTT.js.
'use strict';

const assert = require('node:assert/strict');
const mqtt = require('mqtt');
const { Inbox, unique, bodySizes, randomBytes } = require('./checks');

async function connect(options, after, more = {}) {
  const inbox = new Inbox();
  const client = mqtt.connect(`mqtt://${options.mqtt}`, {
    clientId: unique('mqttjs'), protocolVersion: 4, reconnectPeriod: 0, connectTimeout: 120_000, ...more,
  });
  client.on('message', (topic, payload, packet) => inbox.put({ topic, payload, packet }));
  after(() => client.endAsync(true));
  const connack = await new Promise((resolve, reject) => {
    client.once('connect', resolve);
    client.once('error', reject);
    client.once('close', () => reject(new Error('the connection was closed')));
  });
  return { client, inbox, connack };
}

const versions = [4, 5];

module.exports = {
  async qos_0_and_1_in_order(options, after) {
    for (const protocolVersion of versions) {
      const { client, inbox } = await connect(options, after, { protocolVersion });
      const topic = unique('topic');
      for (const qos of [0, 1]) {
        const [granted] = await client.subscribeAsync(topic, { qos });
        assert.equal(granted.qos, qos, 'granted QoS');
        for (let i = 0; i < 200; i++) client.publish(topic, String(i), { qos });
        for (let i = 0; i < 200; i++) {
          const got = await inbox.next();
          assert.deepEqual([got.topic, got.payload.toString(), got.packet.qos, got.packet.retain], [topic, String(i), qos, false]);
        }
      }
    }
  },

  async every_body_is_unchanged(options, after) {
    for (const protocolVersion of versions) {
      const { client, inbox } = await connect(options, after, { protocolVersion });
      const topic = `${unique('topic')}/body`;
      await client.subscribeAsync(topic, { qos: 1 });
      for (const size of bodySizes) {
        const body = randomBytes(size);
        await client.publishAsync(topic, body, { qos: 1 });
        assert.ok((await inbox.next()).payload.equals(body), `body of ${size} bytes`);
      }
    }
  },

  async wildcards_match(options, after) {
    const { client, inbox } = await connect(options, after);
    const root = unique('w');
    await client.subscribeAsync([`${root}/+/cmd`, `${root}/log/#`], { qos: 1 });
    for (const topic of ['/a/cmd', '/a/b/cmd', '/log', '/log/x/y', '/cmd']) {
      await client.publishAsync(root + topic, topic, { qos: 1 });
    }
    for (const want of ['/a/cmd', '/log', '/log/x/y']) assert.equal((await inbox.next()).payload.toString(), want);
  },

  async a_persistent_session_gets_what_was_published_while_away(options, after) {
    for (const protocolVersion of versions) {
      const more = {
        protocolVersion, clientId: unique('session'), clean: false,
        ...(protocolVersion === 5 && { properties: { sessionExpiryInterval: 600 } }),
      };
      const topic = unique('topic');
      const first = await connect(options, after, more);
      assert.equal(first.connack.sessionPresent, false);
      await first.client.subscribeAsync(topic, { qos: 1 });
      await first.client.endAsync();
      const publisher = await connect(options, after);
      for (let i = 0; i < 20; i++) await publisher.client.publishAsync(topic, String(i), { qos: 1 });
      const second = await connect(options, after, more);
      assert.equal(second.connack.sessionPresent, true);
      for (let i = 0; i < 20; i++) assert.equal((await second.inbox.next()).payload.toString(), String(i));
    }
  },

  async properties_of_5_0_are_unchanged(options, after) {
    const { client, inbox } = await connect(options, after, { protocolVersion: 5 });
    const topic = unique('topic');
    await client.subscribeAsync(topic, { qos: 1, properties: { subscriptionIdentifier: 9 } });
    const properties = {
      contentType: 'application/json', responseTopic: 'reply/here', correlationData: Buffer.from([0, 255]),
      payloadFormatIndicator: true, userProperties: { a: ['1', '2'], b: 'grüße' },
    };
    await client.publishAsync(topic, '{}', { qos: 1, properties });
    const got = (await inbox.next()).packet.properties;
    for (const name of Object.keys(properties)) {
      // Objects of user properties come without a prototype.
      assert.deepEqual(JSON.parse(JSON.stringify(got[name])), JSON.parse(JSON.stringify(properties[name])), name);
    }
    assert.equal(got.subscriptionIdentifier, 9);
  },

  async unsubscribing_ends_deliveries(options, after) {
    const { client, inbox } = await connect(options, after, { protocolVersion: 5 });
    const topic = unique('topic');
    await client.subscribeAsync([`${topic}/a`, `${topic}/b`], { qos: 1 });
    await client.unsubscribeAsync(`${topic}/a`);
    await client.publishAsync(`${topic}/a`, 'x', { qos: 1 });
    await client.publishAsync(`${topic}/b`, 'y', { qos: 1 });
    assert.equal((await inbox.next()).payload.toString(), 'y');
  },

  async qos_2_in_order(options, after) {
    for (const protocolVersion of versions) {
      const { client, inbox } = await connect(options, after, { protocolVersion });
      const topic = unique('topic');
      const [granted] = await client.subscribeAsync(topic, { qos: 2 });
      assert.equal(granted.qos, 2, 'granted QoS');
      for (let i = 0; i < 200; i++) client.publish(topic, String(i), { qos: 2 });
      for (let i = 0; i < 200; i++) {
        const got = await inbox.next();
        assert.deepEqual([got.payload.toString(), got.packet.qos, got.packet.dup], [String(i), 2, false]);
      }
    }
  },

  async retained_messages_come_to_later_subscribers(options, after) {
    for (const protocolVersion of versions) {
      const { client, inbox } = await connect(options, after, { protocolVersion });
      const topic = unique('retained');
      await client.publishAsync(`${topic}/a`, 'x', { qos: 1, retain: true });
      await client.publishAsync(`${topic}/b`, 'y', { qos: 2, retain: true });
      await client.publishAsync(`${topic}/a`, '', { qos: 1, retain: true });
      await client.subscribeAsync(`${topic}/#`, { qos: 2 });
      const got = await inbox.next();
      assert.deepEqual([got.topic, got.payload.toString(), got.packet.retain, got.packet.qos], [`${topic}/b`, 'y', true, 2]);
    }
  },

  async a_will_is_published_when_the_connection_is_lost(options, after) {
    const watcher = await connect(options, after);
    for (const protocolVersion of versions) {
      const topic = unique('will');
      await watcher.client.subscribeAsync(topic, { qos: 1 });
      const will = { topic, payload: Buffer.from('gone'), qos: 1, retain: false };
      const { client } = await connect(options, after, { protocolVersion, will });
      client.stream.destroy();
      assert.equal((await watcher.inbox.next()).payload.toString(), 'gone');
    }
  },

  async a_shared_subscription_gives_each_message_to_one_member(options, after) {
    const members = [];
    const [topic, group] = [unique('topic'), unique('group')];
    for (const protocolVersion of versions) {
      const member = await connect(options, after, { protocolVersion });
      await member.client.subscribeAsync(`$share/${group}/${topic}`, { qos: 1 });
      members.push(member);
    }
    const publisher = await connect(options, after);
    for (let i = 0; i < 50; i++) await publisher.client.publishAsync(topic, String(i), { qos: 1 });
    const seen = new Set();
    const take = async ({ inbox }) => { for (;;) { seen.add((await inbox.next()).payload.toString()); if (seen.size === 50) return; } };
    await Promise.race(members.map(take));
    assert.equal(seen.size, 50);
  },

  async aliases_are_used_towards_a_client_that_allows_them(options, after) {
    const { client, inbox } = await connect(options, after, { protocolVersion: 5, properties: { topicAliasMaximum: 3 } });
    const topic = unique('topic');
    await client.subscribeAsync(topic, { qos: 1 });
    for (let i = 0; i < 3; i++) await client.publishAsync(topic, String(i), { qos: 1 });
    for (let i = 0; i < 3; i++) {
      const got = await inbox.next();
      assert.deepEqual([got.topic, got.payload.toString(), got.packet.properties.topicAlias], [topic, String(i), 1]);
    }
  },

  async wrong_password_is_refused(options, after) {
    for (const protocolVersion of versions) {
      const refused = connect(options, after, { protocolVersion, username: 'guest', password: 'wrong' });
      await assert.rejects(refused, (error) => error.code === 4 || error.code === 5 || error.code === 0x86);
    }
  },
};
