// Runs checks and prints their lines. A check is an async function that throws when something does not hold.
'use strict';

const { randomBytes } = require('node:crypto');
const { once } = require('node:events');
const readline = require('node:readline');

// Longest time that one check may take, milliseconds.
const LIMIT = 180_000;

class Suite {
  constructor(name, options) {
    this.name = name;
    this.options = options;
    this.failed = 0;
  }

  async run(check, body) {
    const name = `${this.name}_node_${check}`;
    if (!new RegExp(this.options.only).test(name)) return;
    const cleanups = [];
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`does not end within ${LIMIT} ms`)), LIMIT);
    });
    try {
      await Promise.race([body(this.options, (cleanup) => cleanups.push(cleanup)), late]);
      console.log(`ok ${name}`);
    } catch (error) {
      this.failed++;
      console.error(error.stack);
      console.log(`FAILED ${name}: ${String(error.message).replaceAll('\n', ' ').slice(0, 500)}`);
    } finally {
      clearTimeout(timer);
      for (const cleanup of cleanups.reverse()) await Promise.resolve().then(cleanup).catch(() => {});
    }
  }
}

// Values in the order in which they come, for whoever asks.
class Inbox {
  constructor() {
    this.values = [];
    this.waiting = [];
  }

  put(value) {
    const waiting = this.waiting.shift();
    if (waiting) waiting(value);
    else this.values.push(value);
  }

  next() {
    if (this.values.length) return Promise.resolve(this.values.shift());
    return new Promise((resolve) => this.waiting.push(resolve));
  }
}

let answers;

// Asks whoever runs this program for something, and waits for the answering line.
async function ask(what) {
  if (!answers) {
    answers = new Inbox();
    readline.createInterface({ input: process.stdin }).on('line', (line) => answers.put(line));
  }
  console.log(`await ${what}`);
  await answers.next();
}

const unique = (kind) => `interop-${kind}-${randomBytes(6).toString('hex')}`;

// None, one byte, one frame, more than 64 KiB, many frames.
const bodySizes = [0, 1, 256, 65_537, 1 << 20, 4 << 20];

module.exports = { Suite, Inbox, ask, unique, bodySizes, randomBytes, once };
