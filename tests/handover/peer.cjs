// One peer with Node's `ws`, for hand-overs: peer.cjs ADDRESS ROLE SERVER_ID.
//
// A binary (`server`) sends each frame back. A phone (`client`) sends frames, each when the
// one before has come back, and checks every byte; it pings as well. When stdin ends, prints
// what it counted as JSON and exits with 0; with 1 at anything else.
"use strict";

const WebSocket = require("ws");

const [address, role, serverId] = process.argv.slice(2);
const own = role === "server" ? { "x-pyrycode-version": "1" } : { "x-pyrycode-token": "t" };
const socket = new WebSocket(`ws://${address}/v1/${role}`, {
  headers: { "user-agent": "ws", "x-pyrycode-server": serverId, ...own },
});
let count = 0, pongs = 0, pings = 0, sent = null, isOver = false;

function fail(why) {
  if (isOver) return;
  console.log(JSON.stringify({ failed: String(why) }));
  process.exit(1);
}

function talk() {
  if (isOver) return;
  sent = JSON.stringify({ n: count, fill: "é".repeat(count % 50 ? count % 300 : 60_000) });
  // In two fragments now and then.
  if (count % 3) {
    socket.send(sent);
  } else {
    socket.send(sent.slice(0, 7), { fin: false });
    socket.send(sent.slice(7), { fin: true });
  }
  if (count % 5 === 0) socket.ping(String(count), true, () => { pings += 1; });
}

socket.on("open", () => {
  console.log(JSON.stringify({ seen: "open" }));
  if (role === "client") talk();
});
socket.on("message", (data) => {
  const text = data.toString();
  if (role === "server") {
    const found = /^\{"conn_id":"([^"]+)","frame":(.*)\}$/s.exec(text);
    if (found) socket.send(`{"conn_id":"${found[1]}","frame":${found[2]}}`);
    else if (!text.includes("close_code")) fail(`received ${text.slice(0, 200)}`);
    return;
  }
  if (text !== sent) fail(`received ${text.slice(0, 100)} instead of ${sent.slice(0, 100)}`);
  count += 1;
  setTimeout(talk, 2);
});
socket.on("pong", () => { pongs += 1; });
socket.on("close", (code, reason) => fail(`closed ${code} ${reason}`));
socket.on("error", fail);
process.stdin.resume();
process.stdin.on("end", () => {
  isOver = true;
  console.log(JSON.stringify({ exchanged: count, unanswered: pings - pongs }));
  process.exit(0);
});
