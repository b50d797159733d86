// The relay and Node's `ws`: the library as phone and as binary.
//
//   node peers.cjs RELAY [SCENARIO]...        every scenario, a relay each
//   node peers.cjs idle ADDRESS ROLE SERVER_ID   one honest peer that only answers
//       pings, and prints what it sees, one JSON value a line
"use strict";

const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const http = require("node:http");
const readline = require("node:readline");
const WebSocket = require("ws");

const SOON = 10_000;
const MESSAGE_MAX = 256 * 1024;

/** Rejects when `promise` takes longer than anything that is to happen at once. */
function soon(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing within ${SOON} ms`)), SOON);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

class Relay {
  static async start(program) {
    const environment = Object.entries(process.env).filter(([name]) => !name.startsWith("PYRYCODE_"));
    const flags = ["--insecure-listen", "127.0.0.1:0", "--metrics-listen=", "--rate-limit-per-minute", "0"];
    const relay = new Relay();
    relay.process = spawn(program, flags, {
      stdio: ["ignore", "inherit", "pipe"],
      env: Object.fromEntries(environment),
    });
    relay.exited = new Promise((resolve) => relay.process.once("exit", resolve));
    const log = readline.createInterface({ input: relay.process.stderr });
    relay.address = await soon(new Promise((resolve) => {
      log.on("line", (line) => {
        const found = /\bmsg=listening\b.* listen=(\S+)/.exec(line);
        if (found) resolve(found[1]);
      });
    }), "listening");
    relay.peers = [];
    return relay;
  }

  dial(role, serverId = "home") {
    const peer = new Peer(this.address, role, serverId);
    this.peers.push(peer);
    return soon(peer.opened, `${role} opens`);
  }

  async pair() {
    const binary = await this.dial("server");
    return [binary, await this.dial("client")];
  }

  health() {
    return new Promise((resolve, reject) => {
      http.get(`http://${this.address}/healthz`, { agent: false }, async (answer) => {
        const chunks = [];
        for await (const chunk of answer) chunks.push(chunk);
        resolve(JSON.parse(Buffer.concat(chunks)));
      }).on("error", reject);
    });
  }

  async connected(binaries, phones) {
    const deadline = Date.now() + SOON;
    for (;;) {
      const health = await this.health();
      if (health.connected_binaries === binaries && health.connected_phones === phones) return;
      assert(Date.now() < deadline, `not ${binaries}+${phones}: ${JSON.stringify(health)}`);
    }
  }

  async end() {
    for (const peer of this.peers) peer.socket.terminate();
    this.process.kill("SIGTERM");
    assert.equal(await soon(this.exited, "exit"), 0, "exit status after SIGTERM");
  }
}

/** A `ws` client; what it receives waits in order. */
class Peer {
  constructor(address, role, serverId) {
    const own = role === "server" ? { "x-pyrycode-version": "1" } : { "x-pyrycode-token": "t" };
    this.socket = new WebSocket(`ws://${address}/v1/${role}`, {
      headers: { "user-agent": "ws", "x-pyrycode-server": serverId, ...own },
    });
    this.received = [];
    this.wakes = [];
    this.socket.on("message", (data, isBinary) => {
      assert(!isBinary, "the relay sends text only");
      this.received.push(data.toString());
      this.wakes.shift()?.();
    });
    this.socket.on("upgrade", (answer) => {
      this.requestId = answer.headers["x-request-id"];
    });
    this.closed = new Promise((resolve) => {
      this.socket.on("close", (code, reason) => resolve([code, reason.toString()]));
    });
    this.opened = new Promise((resolve, reject) => {
      this.socket.on("open", () => resolve(this));
      // After the opening, "close" tells.
      this.socket.on("error", reject);
    });
  }

  async next() {
    if (!this.received.length) {
      await soon(new Promise((resolve) => this.wakes.push(resolve)), "message");
    }
    return this.received.shift();
  }

  closedWith() {
    return soon(this.closed, "close");
  }

  async ping(payload) {
    const pong = new Promise((resolve) => this.socket.once("pong", resolve));
    this.socket.ping(payload);
    return (await soon(pong, "pong")).toString();
  }

  /** Sends a message in the pieces given. */
  sendPieces(pieces, binary) {
    pieces.forEach((piece, at) => this.socket.send(piece, { binary, fin: at === pieces.length - 1 }));
  }
}

function forPhone(phone, frame, closeCode) {
  const tail = closeCode === undefined ? "" : `,"close_code":${closeCode}`;
  return `{"conn_id":"${phone.requestId}","frame":${frame}${tail}}`;
}

const NO_CODE = 1005; // What `ws` makes of an empty close frame.

const scenarios = {
  async text_and_binary_both_ways(relay) {
    const [binary, phone] = await relay.pair();
    assert.equal(phone.socket.extensions, "");
    assert.equal(phone.socket.protocol, "");
    for (const frame of ['{ "b" : [1.50, 1E2], "a":"é\\u00e9😀\u2028" }', "1", '"x"', "[ ]"]) {
      for (const sent of [(text) => text, Buffer.from]) {
        phone.socket.send(sent(frame));
        assert.equal(await binary.next(), `{"conn_id":"${phone.requestId}","frame":${frame}}`);
        binary.socket.send(sent(forPhone(phone, frame)));
        assert.equal(await phone.next(), frame);
      }
    }
  },

  async order_is_kept(relay) {
    const [binary, phone] = await relay.pair();
    for (let number = 0; number < 2000; number += 1) {
      phone.socket.send(`${number}`);
      binary.socket.send(forPhone(phone, number));
    }
    for (let number = 0; number < 2000; number += 1) {
      assert.equal(JSON.parse(await binary.next()).frame, number);
      assert.equal(await phone.next(), `${number}`);
    }
  },

  async pings_are_answered(relay) {
    for (const peer of await relay.pair()) {
      for (const payload of ["", "ping", "x".repeat(125)]) {
        assert.equal(await peer.ping(payload), payload);
      }
    }
  },

  async the_largest_message(relay) {
    const [binary, phone] = await relay.pair();
    const frame = `"${"x".repeat(MESSAGE_MAX - 2)}"`;
    phone.socket.send(frame);
    assert.equal(await binary.next(), `{"conn_id":"${phone.requestId}","frame":${frame}}`);
    const content = "y".repeat(MESSAGE_MAX - forPhone(phone, '""').length);
    binary.socket.send(forPhone(phone, `"${content}"`));
    assert.equal(await phone.next(), `"${content}"`);
    // And not one byte more, of either.
    phone.socket.send(`${frame} `);
    assert.equal((await phone.closedWith())[0], 1009);
    binary.socket.send(forPhone(phone, `"${content}y"`));
    assert.equal((await binary.closedWith())[0], 1009);
  },

  async messages_in_pieces(relay) {
    const [binary, phone] = await relay.pair();
    const frame = `["${"é".repeat(30_000)}"]`;
    const cut = (text, size) => {
      const bytes = Buffer.from(text);
      return Array.from({ length: Math.ceil(bytes.length / size) }, (_, at) =>
        bytes.subarray(at * size, (at + 1) * size));
    };
    // Bytes may be cut within a character.
    phone.sendPieces(cut(frame, 999), false);
    assert.equal(await binary.next(), `{"conn_id":"${phone.requestId}","frame":${frame}}`);
    binary.sendPieces(cut(forPhone(phone, frame), 777), true);
    assert.equal(await phone.next(), frame);
    phone.sendPieces(cut(`"${"x".repeat(MESSAGE_MAX)}"`, 65_536), false);
    assert.equal((await phone.closedWith())[0], 1009);
  },

  async a_close_is_echoed(relay) {
    const holder = await relay.dial("server");
    for (const code of [1000, 1001, 3000, 4999, undefined]) {
      for (const [role, serverId] of [["client", "home"], ["server", `own-${code}`]]) {
        const peer = await relay.dial(role, serverId);
        peer.socket.close(...(code === undefined ? [] : [code, "bye"]));
        assert.equal((await peer.closedWith())[0], code ?? NO_CODE);
      }
    }
    assert.equal(await holder.ping("alive"), "alive");
  },

  async a_binary_closes_a_phone(relay) {
    const binary = await relay.dial("server");
    for (const [asked, sent] of [[1000, 1000], [4001, 4001], [1014, 1014], [1005, 1011], [7, 1011]]) {
      const phone = await relay.dial("client");
      binary.socket.send(forPhone(phone, '"last"', asked));
      assert.equal(await phone.next(), '"last"');
      assert.deepEqual(await phone.closedWith(), [sent, ""]);
    }
    assert.equal(await binary.ping("alive"), "alive");
  },

  async a_binary_is_told_how_each_phone_ends(relay) {
    const binary = await relay.dial("server");
    const ends = [
      [(socket) => socket.close(1000, "bye"), 1000],
      [(socket) => socket.close(4321), 4321],
      [(socket) => socket.close(), 1005],
      [(socket) => socket.terminate(), 1001],
      [(socket) => socket.send("{"), 1007],
      [(socket) => socket.send(`"${"x".repeat(MESSAGE_MAX)}"`), 1009],
    ];
    for (const [end, code] of ends) {
      const phone = await relay.dial("client");
      end(phone.socket);
      assert.equal(await binary.next(), `{"conn_id":"${phone.requestId}","close_code":${code}}`);
    }
  },

  async no_server_with_that_id(relay) {
    const phone = await relay.dial("client", "nobody");
    assert.deepEqual(await phone.closedWith(), [4404, "no server with that id"]);
  },

  async too_many_phones(relay) {
    await relay.dial("server");
    const phones = [];
    for (let count = 0; count < 16; count += 1) phones.push(await relay.dial("client"));
    const oneMore = await relay.dial("client");
    assert.deepEqual(await oneMore.closedWith(), [4429, "too many phones for server-id"]);
    phones[3].socket.close();
    await phones[3].closedWith();
    assert.equal(await (await relay.dial("client")).ping("in"), "in");
  },

  async not_json(relay) {
    const [, phone] = await relay.pair();
    phone.socket.send("{");
    assert.deepEqual(await phone.closedWith(), [1007, "frame is not valid JSON"]);
  },

  async a_living_incumbent_keeps_its_slot(relay) {
    const [binary, phone] = await relay.pair();
    for (const rival of await Promise.all([1, 2, 3].map(() => relay.dial("server")))) {
      assert.deepEqual(await rival.closedWith(), [4409, "server-id already claimed"]);
    }
    phone.socket.send("1");
    assert.equal(JSON.parse(await binary.next()).frame, 1);
  },

  async a_claim_in_grace_takes_the_slot(relay) {
    const [binary, phone] = await relay.pair();
    binary.socket.terminate();
    await relay.connected(0, 1);
    const late = await relay.dial("client");
    await relay.dial("server");
    for (const old of [phone, late]) {
      assert.deepEqual(await old.closedWith(), [4404, "binary reclaimed server-id"]);
    }
  },

  async a_frame_in_grace(relay) {
    const [binary, phone] = await relay.pair();
    binary.socket.close();
    await relay.connected(0, 1);
    phone.socket.send("{}");
    assert.deepEqual(await phone.closedWith(), [4404, "binary disconnected"]);
  },

  async the_relay_shuts_down(relay) {
    const peers = await relay.pair();
    relay.process.kill("SIGTERM");
    for (const peer of peers) assert.deepEqual(await peer.closedWith(), [1001, "shutting down"]);
    assert.equal(await soon(relay.exited, "exit"), 0);
  },
};

async function run(program, names) {
  const chosen = Object.keys(scenarios).filter((name) => !names.length || names.includes(name));
  let failed = 0;
  for (const name of chosen) {
    const started = Date.now();
    let failure;
    let relay;
    try {
      relay = await Relay.start(program);
      await scenarios[name](relay);
      await relay.end();
    } catch (error) {
      failure = error;
      relay?.process.kill("SIGKILL");
    }
    const seconds = ((Date.now() - started) / 1000).toFixed(1);
    console.log(`ws ${name} … ${failure ? "FAILED" : "ok"} (${seconds} s)`);
    if (failure) {
      failed += 1;
      console.log(failure.stack);
    }
  }
  console.log(`ws: ${chosen.length - failed} passed, ${failed} failed`);
  return failed || !chosen.length ? 1 : 0;
}

async function idle(address, role, serverId) {
  const tell = (seen) => process.stdout.write(`${JSON.stringify(seen)}\n`);
  const peer = new Peer(address, role, serverId);
  peer.socket.on("ping", () => tell({ seen: "ping" }));
  peer.socket.on("message", (data) => tell({ seen: "message", data: data.toString() }));
  peer.opened.then(() => tell({ seen: "open" }), (error) => tell({ seen: "error", error: `${error}` }));
  const [code, reason] = await peer.closed;
  tell({ seen: "close", code, reason });
  return 0;
}

const [first, ...rest] = process.argv.slice(2);
(first === "idle" ? idle(...rest) : run(first, rest)).then(
  (status) => process.exit(status),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
