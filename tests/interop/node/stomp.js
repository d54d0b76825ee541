// STOMP over WebSocket with stompjs, MQTT over WebSocket with MQTT.js.
'use strict';

const assert = require('node:assert/strict');
const mqtt = require('mqtt');
const { Client, Versions } = require('@stomp/stompjs');
const WebSocket = require('ws');
const { Inbox, unique, bodySizes, randomBytes } = require('./checks');

async function connect(options, after, more = {}) {
  const errors = new Inbox();
  const client = new Client({
    webSocketFactory: () => new WebSocket(`ws://${options['stomp-websocket']}/ws`, ['v12.stomp', 'v11.stomp', 'v10.stomp']),
    connectHeaders: { login: 'guest', passcode: 'guest' }, reconnectDelay: 0,
    heartbeatIncoming: 60_000, heartbeatOutgoing: 60_000, ...more,
  });
  client.onStompError = (frame) => errors.put(frame);
  const connected = new Promise((resolve) => { client.onConnect = resolve; });
  after(() => client.deactivate());
  client.activate();
  const frame = await connected;
  return { client, errors, version: frame.headers.version };
}

function subscribe(client, destination, headers = {}) {
  const inbox = new Inbox();
  client.subscribe(destination, (message) => inbox.put(message), headers);
  return inbox;
}

function sent(client, frame) {
  const receipt = unique('receipt');
  const done = new Promise((resolve) => client.watchForReceipt(receipt, resolve));
  client.publish({ ...frame, headers: { ...frame.headers, receipt } });
  return done;
}

module.exports = {
  async every_version_is_spoken(options, after) {
    for (const version of ['1.0', '1.1', '1.2']) {
      const { client, version: got } = await connect(options, after, { stompVersions: new Versions([version]) });
      assert.equal(got, version);
      const destination = `/topic/${unique('topic')}`;
      const inbox = subscribe(client, destination);
      await sent(client, { destination, body: 'grüße' });
      assert.equal((await inbox.next()).body, 'grüße');
    }
  },

  async every_body_is_unchanged(options, after) {
    const { client } = await connect(options, after);
    const destination = `/queue/${unique('queue')}`;
    const inbox = subscribe(client, destination);
    for (const size of bodySizes) {
      const binaryBody = new Uint8Array(randomBytes(size));
      await sent(client, { destination, binaryBody, headers: { persistent: 'true' } });
      assert.ok(Buffer.from((await inbox.next()).binaryBody).equals(Buffer.from(binaryBody)), `body of ${size} bytes`);
    }
  },

  async frames_split_over_messages(options, after) {
    const { client } = await connect(options, after, { splitLargeFrames: true, maxWebSocketChunkSize: 37 });
    const destination = `/queue/${unique('queue')}`;
    const inbox = subscribe(client, destination);
    const body = 'x'.repeat(5000);
    await sent(client, { destination, body });
    assert.equal((await inbox.next()).body, body);
  },

  async a_nacked_message_goes_to_another(options, after) {
    const one = await connect(options, after);
    const other = await connect(options, after);
    const destination = `/queue/${unique('queue')}`;
    const inbox = subscribe(one.client, destination, { ack: 'client-individual' });
    await sent(one.client, { destination, body: 'x' });
    const second = subscribe(other.client, destination, { ack: 'client-individual' });
    (await inbox.next()).nack();
    const again = await Promise.race([inbox.next(), second.next()]);
    assert.equal(again.headers.redelivered, 'true');
    again.ack();
  },

  async an_error_says_what_was_wrong(options, after) {
    const { client, errors } = await connect(options, after);
    client.publish({ destination: '/nowhere/x', body: 'x' });
    assert.equal((await errors.next()).headers.message, 'Unknown destination');
  },

  async mqtt_over_websocket(options, after) {
    for (const protocolVersion of [4, 5]) {
      const client = await mqtt.connectAsync(`ws://${options['mqtt-websocket']}/mqtt`, { protocolVersion, reconnectPeriod: 0, connectTimeout: 120_000 });
      after(() => client.endAsync(true));
      const inbox = new Inbox();
      client.on('message', (topic, payload) => inbox.put(payload));
      const topic = unique('topic');
      await client.subscribeAsync(topic, { qos: 1 });
      for (const size of bodySizes) {
        const body = randomBytes(size);
        await client.publishAsync(topic, body, { qos: 1 });
        assert.ok((await inbox.next()).equals(body), `body of ${size} bytes`);
      }
    }
  },
};
