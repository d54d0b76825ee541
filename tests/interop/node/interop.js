// Drives a broker with the Node clients that people use: amqplib, MQTT.js and stompjs.
//
// Every suite is a subcommand, addresses are options. Prints one line for each check, `ok NAME` or
// `FAILED NAME: why`, and ends with a non-zero status when one failed.
'use strict';

const { parseArgs } = require('node:util');
const { Suite } = require('./checks');

const suites = {
  amqp: require('./amqp'), mqtt: require('./mqtt'), 'mqtt-restart': require('./mqtt_restart'), stomp: require('./stomp'),
};

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      amqp: { type: 'string', default: 'amqp://guest:guest@127.0.0.1:5672/' },
      mqtt: { type: 'string', default: '127.0.0.1:1883' },
      stomp: { type: 'string', default: '127.0.0.1:61613' },
      'stomp-websocket': { type: 'string', default: '127.0.0.1:15674' },
      'mqtt-websocket': { type: 'string', default: '127.0.0.1:8083' },
      'name-server': { type: 'string' }, // not used by the Node clients
      only: { type: 'string', default: '' },
    },
  });
  const checks = suites[positionals[0]];
  if (!checks) throw new Error(`usage: interop.js ${Object.keys(suites).join('|')} [options]`);
  const suite = new Suite(positionals[0], values);
  for (const [name, check] of Object.entries(checks)) await suite.run(name, check);
  // Connections of failed checks must not keep the process.
  process.exit(suite.failed ? 1 : 0);
}

main();
