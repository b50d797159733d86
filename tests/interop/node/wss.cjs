// The relay's TLS and Node's `ws`, as phone and as binary: `node wss.cjs PORT CA`.
// The other end of both is this process; what it says it prints, and 0 means all is well.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const { once } = require("node:events");
const WebSocket = require("ws");

const [port, ca] = process.argv.slice(2);

function dial(role) {
  return new WebSocket(`wss://localhost:${port}/v1/${role}`, {
    ca: fs.readFileSync(ca),
    headers: {
      "x-pyrycode-server": "node",
      "x-pyrycode-version": "1",
      "x-pyrycode-token": "t",
      "user-agent": "ws",
    },
  });
}

async function main() {
  const binary = dial("server");
  await once(binary, "open");
  const phone = dial("client");
  await once(phone, "open");
  const large = JSON.stringify("x".repeat(200_000));
  for (const frame of ["1", '{"a" : [2]}', large]) {
    phone.send(frame);
    const [envelope] = await once(binary, "message");
    const { conn_id } = JSON.parse(envelope);
    assert.equal(envelope.toString(), `{"conn_id":"${conn_id}","frame":${frame}}`);
    binary.send(envelope.toString());
    const [back] = await once(phone, "message");
    assert.equal(back.toString(), frame);
  }
  assert.equal(phone._socket.getProtocol(), "TLSv1.3");
  phone.close(1000);
  const [code] = await once(phone, "close");
  assert.equal(code, 1000);
  binary.terminate();
}

setTimeout(() => { throw new Error("nothing happens"); }, 20_000).unref();
main();
